#ifndef JUBAL_RPC_RANK_LINK_H_
#define JUBAL_RPC_RANK_LINK_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "rpc/control_frames.h"
#include "runtime/request.h"

namespace jubal {

/// The environment variable that holds the control token, for the coordinator and the ranks alike.
inline constexpr char kControlTokenVariable[] = "JUBAL_CONTROL_TOKEN";

struct RankLinkOptions {
  std::string address;  // of the coordinator: a socket's path (it has a '/') or HOST:PORT
  std::string token;    // the value of kControlTokenVariable
  std::uint32_t epoch = 0;
  std::uint32_t rank = 0;
  std::uint32_t ranks = 0;
  std::chrono::milliseconds connect_timeout{10'000};
};

/// What the coordinator asks of a rank; only the leader (rank 0) gets the first three. They run on
/// the link's reader thread, one at a time, must not block, and may begin before the constructor
/// of RankLink has returned. They must not destroy the link. All must be set.
struct RankLinkCallbacks {
  std::function<void(RequestId, GenerationRequest)> on_submit;
  std::function<void(RequestId)> on_cancel;  // ids may be unknown: the request may have ended

  /// Finish what was submitted, then end the job with exit status 0.
  std::function<void()> on_stop;

  /// The coordinator is gone, does not want this rank or does not read: the rank must end its job.
  /// Called at most once, the last of all callbacks; never because of the destructor.
  std::function<void(const std::string& reason)> on_lost;
};

/// A rank's control connection. Held from before MPI starts until the rank ends: its closing is how
/// the coordinator learns that the rank died.
///
/// Owns two threads, one that reads and one that writes. Everything sent is queued, so no call
/// blocks on the network. The queue is bounded: a coordinator that leaves 64 MiB unread counts as
/// lost.
class RankLink {
 public:
  /// Connects, trying again until the time is up, and says Hello. Throws UserError(kUnavailable)
  /// naming the address.
  RankLink(const RankLinkOptions& options, RankLinkCallbacks callbacks);

  /// Sends what is queued, for up to 5 s, then closes, for up to 1 s.
  ~RankLink();

  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;

  // Thread-safe; after the connection is lost they do nothing.

  /// From the leader, once, when all ranks are warm: requests may come.
  void SendReady(const ServingInfo& info);

  /// Adds to the batch that is waiting to be sent, if there is one.
  void SendEvents(std::span<const GenerationEvent> events);

  void SendRejected(RequestId id, const Rejection& rejection);

  /// Why this rank is about to end its job; the coordinator passes it on to clients and logs.
  void SendFatal(const std::string& message);

 private:
  class Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_RANK_LINK_H_

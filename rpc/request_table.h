#ifndef JUBAL_RPC_REQUEST_TABLE_H_
#define JUBAL_RPC_REQUEST_TABLE_H_

#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rpc/control_frames.h"
#include "rpc/token_log.h"
#include "runtime/request.h"

namespace jubal {

/// One client's request from admission to its last byte: its log, and the one who reads it. All
/// methods are thread-safe.
class OpenRequest {
 public:
  struct Output {
    OutputDelta delta;
    std::optional<grpc::Status> end;  // nothing follows; OK exactly if delta.finish is set
  };

  class Reader {
   public:
    /// Called once for each Next, on its thread or a later writer's, with no lock held.
    virtual void OnOutput(Output output) = 0;

   protected:
    ~Reader() = default;
  };

  OpenRequest(RequestId id, const Tokenizer* tokenizer, std::vector<std::string> stop_strings);

  RequestId id() const { return id_; }

  /// Gives the reader what came since it last asked, as soon as there is something. What was
  /// appended before an end comes before the end. One Next at a time; the reader must live until
  /// it was answered or Abandon returned true.
  void Next(Reader* reader);

  /// The client is gone: the next answer is CANCELLED. True if a Next was waiting; it is then not
  /// answered any more.
  bool Abandon();

  bool abandoned() const;

  /// Takes an event, unless the request has ended. True if a stop string ended it now.
  bool Append(std::uint32_t epoch, const GenerationEvent& event);

  /// Ends the request, unless it has ended, with a status other than OK.
  void Fail(const grpc::Status& status);

 private:
  // With mutex_ held: what a reader gets now, if anything.
  std::optional<Output> TakeOutput();

  // Answers a waiting reader if there is something for it; `lock` holds mutex_ and is released.
  void Deliver(std::unique_lock<std::mutex> lock);

  const RequestId id_;
  mutable std::mutex mutex_;
  TokenLog log_;
  bool abandoned_ = false;
  std::optional<grpc::Status> failure_;
  Reader* waiting_ = nullptr;
};

/// The requests that the leader works on, and what is to be sent to it. gRPC's threads put requests
/// in; the control loop moves them on.
class RequestTable {
 public:
  /// `wake` makes the control loop call TakeOutbox; thread-safe and quick.
  RequestTable(std::int64_t max_open_requests, std::function<void()> wake);

  // For gRPC's threads. Thread-safe.

  /// The right to have a request open; what a client makes the coordinator hold is bounded by it.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept : open_(std::exchange(other.open_, nullptr)) {}
    Place& operator=(Place&& other) noexcept {
      std::swap(open_, other.open_);
      return *this;
    }
    ~Place() {
      if (open_ != nullptr) --*open_;
    }
    explicit operator bool() const { return open_ != nullptr; }

   private:
    friend class RequestTable;
    explicit Place(std::atomic<std::int64_t>* open) : open_(open) {}
    std::atomic<std::int64_t>* open_ = nullptr;
  };

  /// False if too many have one. A place must not outlive the table.
  Place TakePlace();

  RequestId NewId() { return next_id_++; }

  /// What the leader said, or why requests are refused now: UNAVAILABLE.
  std::shared_ptr<const ServingInfo> serving() const;
  grpc::Status refusal() const;

  /// Queues the request for the leader. Otherwise says why not: not serving, or abandoned.
  grpc::Status Submit(std::shared_ptr<OpenRequest> request, GenerationRequest generation);

  /// Abandons the request, at the leader too if it is still at work. What Abandon returns.
  bool Cancel(OpenRequest& request);

  // For the control loop.

  void BeginServing(std::uint32_t epoch, ServingInfo info);

  /// New requests get UNAVAILABLE; open ones go on.
  void Refuse(const std::string& reason);

  /// New requests get UNAVAILABLE, and so do open ones. Nothing is left to be sent.
  void EndServing(const std::string& reason);

  /// Events of another epoch than that being served, or of requests that ended, are dropped.
  void OnEvents(std::uint32_t epoch, std::span<const GenerationEvent> events);
  void OnRejected(std::uint32_t epoch, RequestId id, const Rejection& rejection);

  /// What is to be sent to the leader, in order.
  std::vector<FrameBody> TakeOutbox();

  /// Whether the leader works on nothing.
  bool empty() const;

  /// Whether nobody has a place: all clients have their answers.
  bool all_answered() const { return open_ == 0; }

 private:
  std::shared_ptr<OpenRequest> Find(std::uint32_t epoch, RequestId id) const;
  void Remove(RequestId id, bool tell_leader);

  const std::int64_t max_open_requests_;
  const std::function<void()> wake_;
  std::atomic<std::int64_t> open_ = 0;
  std::atomic<RequestId> next_id_ = 1;

  mutable std::mutex mutex_;                    // never held while a request's is taken
  std::shared_ptr<const ServingInfo> serving_;  // null: refusal_ holds
  grpc::Status refusal_;
  std::uint32_t epoch_ = 0;
  std::unordered_map<RequestId, std::shared_ptr<OpenRequest>> requests_;
  std::vector<FrameBody> outbox_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_REQUEST_TABLE_H_

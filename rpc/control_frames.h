#ifndef JUBAL_RPC_CONTROL_FRAMES_H_
#define JUBAL_RPC_CONTROL_FRAMES_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "runtime/request.h"

namespace jubal {

/// The control protocol between the coordinator and the ranks of one MPI job. A stream socket
/// carries frames: a fixed header (magic, version, type, payload length, epoch, rank, checksum of
/// all the rest), then the payload; integers are little-endian. A rank's first frame is Hello.

/// What the leader says about itself once all ranks are warm.
struct ServingInfo {
  std::string model;   // its name, as clients give it
  std::string family;  // "grok-1"
  RequestLimits limits;
  std::vector<TokenId> eos_ids;  // end a generation unless the request ignores them
  std::int64_t weight_bytes = 0;
  std::string plan;  // for people: how ranks share the model
};

struct HelloFrame {
  std::string token;  // proves that the rank was started by the supervisor
  std::uint32_t ranks = 0;
  std::int64_t pid = 0;
  std::string host;
};

struct ReadyFrame {
  ServingInfo info;
};

struct SubmitFrame {
  RequestId id = 0;
  GenerationRequest request;
};

struct CancelFrame {
  RequestId id = 0;
};

struct EventsFrame {
  std::vector<GenerationEvent> events;
};

struct RejectedFrame {
  RequestId id = 0;
  Rejection rejection;
};

/// To the leader: finish what was submitted, then end the job; all ranks exit 0.
struct StopFrame {};

/// The sender ends the connection, and says why.
struct FatalFrame {
  std::string message;
};

using FrameBody = std::variant<HelloFrame, ReadyFrame, SubmitFrame, CancelFrame, EventsFrame,
                               RejectedFrame, StopFrame, FatalFrame>;

struct Frame {
  std::uint32_t epoch = 0;
  std::uint32_t rank = 0;  // the sender's, or the receiver's in frames from the coordinator
  FrameBody body;
};

/// Bytes that are no frame. The connection cannot go on: there is no way to find the next frame.
class FrameError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr std::size_t kFrameHeaderBytes = 32;
inline constexpr std::size_t kMaxFramePayload = std::size_t{64} << 20;

/// Requires a payload of at most kMaxFramePayload.
std::string EncodeFrame(const Frame& frame);

struct DecodedFrame {
  Frame frame;
  std::size_t size = 0;  // bytes it took, header included
};

/// Reads the frame that begins `bytes`; nothing if more bytes are needed to know it. Throws
/// FrameError if no frame begins like this: a longer payload than `max_payload` is refused from
/// the header alone, and counts inside a payload never make it allocate more than the payload's
/// size warrants.
std::optional<DecodedFrame> DecodeFrame(std::span<const std::byte> bytes,
                                        std::size_t max_payload = kMaxFramePayload);

/// Cuts a byte stream into frames. Not thread-safe.
class FrameReader {
 public:
  explicit FrameReader(std::size_t max_payload) : max_payload_(max_payload) {}

  void set_max_payload(std::size_t bytes) { max_payload_ = bytes; }

  void Append(std::span<const std::byte> bytes);

  /// The next whole frame, if there is one. Throws FrameError.
  std::optional<Frame> Next();

 private:
  std::size_t max_payload_;
  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;  // of the first frame not yet taken
};

}  // namespace jubal

#endif  // JUBAL_RPC_CONTROL_FRAMES_H_

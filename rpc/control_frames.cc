#include "rpc/control_frames.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kernels/check.h"

namespace jubal {
namespace {

constexpr std::uint32_t kMagic = 0x4c42554a;  // "JUBL" in memory
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kChecksumOffset = 24;  // the header's last 8 bytes

static_assert(std::endian::native == std::endian::little, "integers are copied as they lie");

class Writer {
 public:
  explicit Writer(std::string* out) : out_(out) {}

  template <class T>
  requires std::is_arithmetic_v<T>
  void Put(T value) { out_->append(reinterpret_cast<const char*>(&value), sizeof(value)); }

  void Put(bool value) { Put<std::uint8_t>(value ? 1 : 0); }

  void Put(std::string_view text) {
    Put(static_cast<std::uint32_t>(text.size()));
    out_->append(text);
  }

  template <class T>
  requires std::is_arithmetic_v<T>
  void Put(const std::vector<T>& values) {
    Put(static_cast<std::uint32_t>(values.size()));
    out_->append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }

 private:
  std::string* out_;
};

// Reads a payload; every method throws FrameError rather than read past its end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  requires std::is_arithmetic_v<T> T Take() {
    T value;
    std::memcpy(&value, TakeBytes(sizeof(T)).data(), sizeof(T));
    return value;
  }

  bool TakeBool() {
    const auto value = Take<std::uint8_t>();
    if (value > 1) throw FrameError("a truth value is neither 0 nor 1");
    return value == 1;
  }

  // A value of an enum that has the values 0 to `last`.
  template <class Enum>
  Enum TakeEnum(Enum last) {
    const auto value = Take<std::uint8_t>();
    if (value > static_cast<std::uint8_t>(last))
      throw FrameError("an enumeration has no such value");
    return static_cast<Enum>(value);
  }

  std::string TakeString() {
    const auto size = Take<std::uint32_t>();
    const auto bytes = TakeBytes(size);
    return std::string(reinterpret_cast<const char*>(bytes.data()), size);
  }

  template <class T>
  std::vector<T> TakeVector() {
    const auto count = Take<std::uint32_t>();
    const auto bytes = TakeBytes(std::size_t{count} * sizeof(T));
    std::vector<T> values(count);
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  void ExpectEnd() const {
    if (!bytes_.empty()) throw FrameError("a payload is longer than its content");
  }

 private:
  std::span<const std::byte> TakeBytes(std::size_t size) {
    if (size > bytes_.size()) throw FrameError("a payload is shorter than its content");
    const auto taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }

  std::span<const std::byte> bytes_;
};

void Write(const HelloFrame& frame, Writer& out) {
  out.Put(frame.token);
  out.Put(frame.ranks);
  out.Put(frame.pid);
  out.Put(frame.host);
}

void Read(Reader& in, HelloFrame& frame) {
  frame.token = in.TakeString();
  frame.ranks = in.Take<std::uint32_t>();
  frame.pid = in.Take<std::int64_t>();
  frame.host = in.TakeString();
}

void Write(const ReadyFrame& frame, Writer& out) {
  out.Put(frame.info.model);
  out.Put(frame.info.family);
  out.Put(frame.info.limits.vocabulary);
  out.Put(frame.info.limits.context);
  out.Put(frame.info.eos_ids);
  out.Put(frame.info.weight_bytes);
  out.Put(frame.info.plan);
}

void Read(Reader& in, ReadyFrame& frame) {
  frame.info.model = in.TakeString();
  frame.info.family = in.TakeString();
  frame.info.limits.vocabulary = in.Take<std::int64_t>();
  frame.info.limits.context = in.Take<std::int64_t>();
  frame.info.eos_ids = in.TakeVector<TokenId>();
  frame.info.weight_bytes = in.Take<std::int64_t>();
  frame.info.plan = in.TakeString();
}

void Write(const SubmitFrame& frame, Writer& out) {
  const GenerationRequest& request = frame.request;
  const SamplingParams& sampling = request.sampling;
  out.Put(frame.id);
  out.Put(request.prompt);
  out.Put(sampling.temperature);
  out.Put(sampling.top_k);
  out.Put(sampling.top_p);
  out.Put(sampling.min_p);
  out.Put(sampling.presence_penalty);
  out.Put(sampling.frequency_penalty);
  out.Put(sampling.repetition_penalty);
  out.Put(sampling.seed);
  out.Put(request.max_tokens);
  out.Put(request.stop_ids);
  out.Put(request.prompt_logprobs);
}

void Read(Reader& in, SubmitFrame& frame) {
  GenerationRequest& request = frame.request;
  SamplingParams& sampling = request.sampling;
  frame.id = in.Take<RequestId>();
  request.prompt = in.TakeVector<TokenId>();
  sampling.temperature = in.Take<float>();
  sampling.top_k = in.Take<std::int32_t>();
  sampling.top_p = in.Take<float>();
  sampling.min_p = in.Take<float>();
  sampling.presence_penalty = in.Take<float>();
  sampling.frequency_penalty = in.Take<float>();
  sampling.repetition_penalty = in.Take<float>();
  sampling.seed = in.Take<std::uint64_t>();
  request.max_tokens = in.Take<std::int64_t>();
  request.stop_ids = in.TakeVector<TokenId>();
  request.prompt_logprobs = in.TakeBool();
}

void Write(const CancelFrame& frame, Writer& out) { out.Put(frame.id); }

void Read(Reader& in, CancelFrame& frame) { frame.id = in.Take<RequestId>(); }

void Write(const EventsFrame& frame, Writer& out) {
  out.Put(static_cast<std::uint32_t>(frame.events.size()));
  for (const GenerationEvent& event : frame.events) {
    out.Put(event.id);
    out.Put(event.prompt_logprobs);
    out.Put(event.token.has_value());
    if (event.token) out.Put(*event.token);
    out.Put(event.logprob);
    out.Put(event.finish.has_value());
    if (event.finish) out.Put(static_cast<std::uint8_t>(*event.finish));
  }
}

void Read(Reader& in, EventsFrame& frame) {
  const auto count = in.Take<std::uint32_t>();
  for (std::uint32_t i = 0; i < count; ++i) {  // no reserve: the count alone proves nothing
    GenerationEvent event;
    event.id = in.Take<RequestId>();
    event.prompt_logprobs = in.TakeVector<float>();
    if (in.TakeBool()) event.token = in.Take<TokenId>();
    event.logprob = in.Take<float>();
    if (in.TakeBool()) event.finish = in.TakeEnum(FinishReason::kLength);
    frame.events.push_back(std::move(event));
  }
}

void Write(const RejectedFrame& frame, Writer& out) {
  out.Put(frame.id);
  out.Put(static_cast<std::uint8_t>(frame.rejection.reason));
  out.Put(frame.rejection.field);
  out.Put(frame.rejection.message);
}

void Read(Reader& in, RejectedFrame& frame) {
  frame.id = in.Take<RequestId>();
  frame.rejection.reason = in.TakeEnum(Rejection::Reason::kQueueFull);
  frame.rejection.field = in.TakeString();
  frame.rejection.message = in.TakeString();
}

void Write(const StopFrame&, Writer&) {}

void Read(Reader&, StopFrame&) {}

void Write(const FatalFrame& frame, Writer& out) { out.Put(frame.message); }

void Read(Reader& in, FatalFrame& frame) { frame.message = in.TakeString(); }

template <std::size_t index = 0>
FrameBody ReadBody(std::uint16_t type, Reader& in) {
  if constexpr (index < std::variant_size_v<FrameBody>) {
    if (type != index) return ReadBody<index + 1>(type, in);
    std::variant_alternative_t<index, FrameBody> body;
    Read(in, body);
    in.ExpectEnd();
    return body;
  } else {
    throw FrameError("a frame has an unknown type");
  }
}

// Of everything but the checksum itself.
std::uint64_t Checksum(const void* header, const void* payload, std::size_t payload_size) {
  return XXH3_64bits_withSeed(payload, payload_size, XXH3_64bits(header, kChecksumOffset));
}

}  // namespace

std::string EncodeFrame(const Frame& frame) {
  std::string bytes(kFrameHeaderBytes, '\0');
  Writer payload(&bytes);
  std::visit([&](const auto& body) { Write(body, payload); }, frame.body);
  const std::size_t payload_size = bytes.size() - kFrameHeaderBytes;
  CHECK_LE(payload_size, kMaxFramePayload);

  std::string header;
  Writer fields(&header);
  fields.Put(kMagic);
  fields.Put(kVersion);
  fields.Put(static_cast<std::uint16_t>(frame.body.index()));
  fields.Put(static_cast<std::uint32_t>(payload_size));
  fields.Put(frame.epoch);
  fields.Put(frame.rank);
  fields.Put(std::uint32_t{0});  // keeps the checksum aligned
  fields.Put(Checksum(header.data(), bytes.data() + kFrameHeaderBytes, payload_size));
  CHECK_EQ(header.size(), kFrameHeaderBytes);
  std::copy(header.begin(), header.end(), bytes.begin());
  return bytes;
}

std::optional<DecodedFrame> DecodeFrame(std::span<const std::byte> bytes, std::size_t max_payload) {
  if (bytes.size() < kFrameHeaderBytes) return std::nullopt;
  Reader header(bytes.first(kFrameHeaderBytes));
  if (header.Take<std::uint32_t>() != kMagic) throw FrameError("no frame begins here");
  if (header.Take<std::uint16_t>() != kVersion) throw FrameError("a frame has another version");
  const auto type = header.Take<std::uint16_t>();
  const std::size_t payload_size = header.Take<std::uint32_t>();
  if (payload_size > max_payload) throw FrameError("a frame is too long");
  DecodedFrame decoded;
  decoded.frame.epoch = header.Take<std::uint32_t>();
  decoded.frame.rank = header.Take<std::uint32_t>();
  if (header.Take<std::uint32_t>() != 0) throw FrameError("a frame's header is wrong");
  const auto checksum = header.Take<std::uint64_t>();

  if (bytes.size() - kFrameHeaderBytes < payload_size) return std::nullopt;
  const auto payload = bytes.subspan(kFrameHeaderBytes, payload_size);
  if (checksum != Checksum(bytes.data(), payload.data(), payload_size)) {
    throw FrameError("a frame's checksum is wrong");
  }
  Reader in(payload);
  decoded.frame.body = ReadBody(type, in);
  decoded.size = kFrameHeaderBytes + payload_size;
  return decoded;
}

void FrameReader::Append(std::span<const std::byte> bytes) {
  bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
  begin_ = 0;
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

std::optional<Frame> FrameReader::Next() {
  auto decoded = DecodeFrame(std::span(bytes_).subspan(begin_), max_payload_);
  if (!decoded) return std::nullopt;
  begin_ += decoded->size;
  return std::move(decoded->frame);
}

}  // namespace jubal

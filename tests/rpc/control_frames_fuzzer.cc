#include <xxhash.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <variant>

#include "rpc/control_frames.h"

// Feeds arbitrary bytes to DecodeFrame, as they are and once more with magic, version, length and
// checksum mended, so that mutations get past the header. What decodes must encode to the same
// bytes.
namespace {

void Decode(std::string bytes) {
  try {
    const auto view = std::as_bytes(std::span(bytes.data(), bytes.size()));
    const auto decoded = jubal::DecodeFrame(view);
    if (!decoded) return;
    const auto* events = std::get_if<jubal::EventsFrame>(&decoded->frame.body);
    if (events != nullptr) return;  // absent values have many encodings
    if (jubal::EncodeFrame(decoded->frame) != bytes.substr(0, decoded->size)) std::abort();
  } catch (const jubal::FrameError&) {
  }
}

std::string Mended(std::string bytes) {
  if (bytes.size() < jubal::kFrameHeaderBytes) return bytes;
  const auto payload = static_cast<std::uint32_t>(bytes.size() - jubal::kFrameHeaderBytes);
  std::memcpy(bytes.data(), "JUBL\x01\x00", 6);
  std::memcpy(bytes.data() + 8, &payload, sizeof(payload));
  const std::uint64_t checksum = XXH3_64bits_withSeed(bytes.data() + jubal::kFrameHeaderBytes,
                                                      payload, XXH3_64bits(bytes.data(), 24));
  std::memcpy(bytes.data() + 24, &checksum, sizeof(checksum));
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  Decode(bytes);
  Decode(Mended(bytes));
  return 0;
}

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/checkpoint/pack_file.h"

// Feeds arbitrary bytes to the reader as a file, and as a manifest in a file large enough for
// offsets to make sense, since no mutation gets past the checksum.
namespace {

void CheckWeights(const std::vector<jubal::PackedWeight>& weights, std::uint64_t end) {
  std::uint64_t covered = 0;
  for (const jubal::PackedWeight& weight : weights) {
    CHECK(weight.k > 0 && weight.n >= 0 && weight.experts > 0);
    CHECK(jubal::HasScales(weight.type) == (weight.group_rows > 0));
    CHECK(weight.data.offset >= covered && weight.data.offset % jubal::kPackDataAlignment == 0);
    CHECK_LE(weight.data.offset, end);
    CHECK_LE(weight.data.bytes, end - weight.data.offset);
    covered = weight.data.offset + weight.data.bytes;
    if (!jubal::HasScales(weight.type)) continue;
    CHECK(weight.scales.offset >= covered);
    CHECK(weight.scales.offset % jubal::kPackScalesAlignment == 0);
    CHECK_LE(weight.scales.offset, end);
    CHECK_LE(weight.scales.bytes, end - weight.scales.offset);
    covered = weight.scales.offset + weight.scales.bytes;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    CheckWeights(jubal::ReadPackHeader(bytes, "input"), size);
  } catch (const jubal::UserError& error) {
    CHECK(error.status() == jubal::ExitStatus::kBadData);
  }
  constexpr std::uint64_t kDataBytes = std::uint64_t{1} << 40;
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const std::vector<jubal::PackedWeight> weights =
        jubal::ParsePackManifest(text, kDataBytes, "input");
    CheckWeights(weights, kDataBytes);
    // What was taken is written in one way, and read again.
    const std::string file = jubal::PackHeader(weights, 0);
    const auto front = std::as_bytes(std::span(file));
    try {
      CHECK_EQ(jubal::ReadPackHeader(front, "again").size(), weights.size());
    } catch (const jubal::UserError&) {
      CHECK(!weights.empty());  // this file has no data
    }
  } catch (const jubal::UserError& error) {
    CHECK(error.status() == jubal::ExitStatus::kBadData);
  }
  return 0;
}

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/checkpoint/pack_file.h"

// Feeds arbitrary bytes to the reader as a file; once more with magic, version, layout, length and
// checksum mended, so that mutations get past the header; and as a manifest in a file large enough
// for offsets to make sense.
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

void Read(std::span<const std::byte> file) {
  try {
    CheckWeights(jubal::ReadPackHeader(file, "input"), file.size());
  } catch (const jubal::UserError& error) {
    CHECK(error.status() == jubal::ExitStatus::kBadData);
  }
}

std::vector<std::byte> Mended(std::vector<std::byte> file) {
  constexpr std::size_t kHeader = 48;
  if (file.size() < kHeader) return file;
  const std::string right = jubal::PackHeader({}, 0);
  std::memcpy(file.data(), right.data(), 24);
  const std::uint64_t size = file.size();
  std::memcpy(file.data() + 24, &size, sizeof size);
  std::uint64_t manifest = 0;
  std::memcpy(&manifest, file.data() + 32, sizeof manifest);
  if (manifest > size - kHeader) return file;
  const std::uint64_t checksum =
      XXH3_64bits_withSeed(file.data() + kHeader, manifest, XXH3_64bits(file.data(), kHeader - 8));
  std::memcpy(file.data() + kHeader - 8, &checksum, sizeof checksum);
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  Read(bytes);
  Read(Mended({bytes.begin(), bytes.end()}));
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

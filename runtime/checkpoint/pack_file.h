#ifndef JUBAL_RUNTIME_CHECKPOINT_PACK_FILE_H_
#define JUBAL_RUNTIME_CHECKPOINT_PACK_FILE_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/packed_matrix.h"
#include "runtime/checkpoint/mapped_file.h"

struct XXH3_state_s;

namespace jubal {

// A pack: one file with all weights of a model as they lie in the memory of a single rank, so that
// any rank of any plan maps it and finds its part. Little-endian:
//
//   header     magic "JUBALPAK"; u32 version, columns of a block, chunks, bytes of a step; u64
//              bytes of the file and of the manifest; u64 checksum of the header before it and of
//              the manifest: 48 bytes in all
//   manifest   JSON: a list of weights, each a flat object with the members of PackedWeight
//   data       from the next multiple of 4096 on: for each weight its data at a multiple of 4096,
//              then its scales (f32), if its type has any, at a multiple of 64; zeros in between
//
// Checksums are XXH3, 64 bits. Offsets in the manifest count from the start of the data.

/// The file's name in the directory of a packed model.
inline constexpr std::string_view kPackFileName = "weights.jubalpack";

inline constexpr std::uint64_t kPackDataAlignment = 4096;
inline constexpr std::uint64_t kPackScalesAlignment = 64;

/// A piece of a pack.
struct PackSection {
  std::uint64_t offset = 0;  // from the start of the file
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};

struct PackedWeight {
  std::string name;  // WeightSpec::Name()
  WeightType type = WeightType::kF32;
  std::int64_t k = 0;
  std::int64_t n = 0;        // 0: a vector of k
  std::int64_t experts = 1;  // of the stack
  std::int64_t group_rows = 0;
  PackSection data;
  PackSection scales;  // no bytes for a type without
};

/// The weights of a pack, given all its bytes, in the file's order. Reads only header and manifest,
/// and checks their checksum.
///
/// What is returned has sections that are aligned, in order, inside the file and free of overlaps,
/// positive sizes below 2^31 (n may be 0) and group_rows that suit the type. Anything else throws
/// UserError (kBadData) that names `file_name` and the problem. Memory is bounded by the manifest's
/// length, which is capped at 64 MiB.
std::vector<PackedWeight> ReadPackHeader(std::span<const std::byte> file,
                                         std::string_view file_name);

/// The manifest's part of that: its text, in a file with so many bytes from the start of the data
/// on. Offsets count from there.
std::vector<PackedWeight> ParsePackManifest(std::string_view manifest, std::uint64_t data_bytes,
                                            std::string_view file_name);

/// Gives every section of the list its offset, counted from the start of the data; bytes are read.
/// Returns the bytes of all data.
std::uint64_t PlacePackSections(std::span<PackedWeight> weights);

/// All that stands in front of the data, up to it. Its length depends on no checksum.
std::string PackHeader(std::span<const PackedWeight> weights, std::uint64_t data_bytes);

/// The checksum of bytes that go by.
class PackChecksum {
 public:
  PackChecksum();
  ~PackChecksum();
  PackChecksum(const PackChecksum&) = delete;
  PackChecksum& operator=(const PackChecksum&) = delete;

  void Add(std::span<const std::byte> bytes);
  std::uint64_t value() const;

 private:
  XXH3_state_s* state_;
};

/// A pack that is mapped.
struct Pack {
  std::shared_ptr<const MappedFile> file;
  std::vector<PackedWeight> weights;

  /// Throws UserError: kNoInput when the file is missing or unreadable, kBadData as ReadPackHeader.
  static Pack Open(const std::filesystem::path& path);

  std::span<const std::byte> bytes(const PackSection& section) const {
    return file->bytes().subspan(section.offset, section.bytes);
  }
};

/// Reads all data on so many threads and holds it against the checksums. `progress` is called on
/// this thread: bytes done, and in all. Throws UserError (kBadData) naming the first weight that
/// differs.
void VerifyPack(const Pack& pack, int threads,
                const std::function<void(std::int64_t done, std::int64_t total)>& progress);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_PACK_FILE_H_

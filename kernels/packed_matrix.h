#ifndef JUBAL_KERNELS_PACKED_MATRIX_H_
#define JUBAL_KERNELS_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/chunks.h"
#include "kernels/tensor.h"

namespace jubal {

/// How weights are stored. int8 keeps the checkpoint's integers and its scales; int4 holds integers
/// −8 … 7, with scales of smaller groups.
enum class WeightType : std::uint8_t { kF32, kBf16, kInt8, kInt4 };

std::string_view NameOf(WeightType type);

/// How a matrix y = x · W, W [K, N], is divided among ranks.
enum class Split : std::uint8_t {
  kByOutput,  // over N: a rank has whole columns of y; K is never divided
  kByInput,   // over K: a rank has some of the 8 chunks, and adds partial products
};

/// Rows of a scale group of int4 where we choose it, and the most there may be.
inline constexpr std::int64_t kInt4GroupRows = 64;
inline constexpr std::int64_t kMaxInt4GroupRows = 512;

/// Rows of one block: 64 neighbouring columns of W.
inline constexpr std::int64_t kBlockColumns = 64;
/// Bytes of one of its steps.
inline constexpr std::int64_t kBlockStepBytes = kBlockColumns * 4;

/// Which part of a weight matrix, or of a stack of experts' matrices, a rank holds, and how it lies
/// in memory. Plain numbers: this one description sizes the budget, guides the packer and drives
/// the kernels.
///
/// Memory order: expert, chunk (one only for kByOutput), 64-column block, then steps of 4 bytes of
/// consecutive k (int4: 8 k, int8: 4 k, bf16: 2 k, f32: 1 k), each step 64 columns wide:
/// [expert][chunk][block][step][64][k in step]. int8 is stored as w + 128, padding as w = 0. Of the
/// 8 k of an int4 step, byte i holds w + 8 of k = i in its low half and of k = i + 4 in its high
/// half. A block is 64-byte aligned. The columns of the first and last block that the rank does not
/// own are stored too.
///
/// Integers have one scale per column and group of `group_rows` consecutive k. Within a chunk each
/// group's rows are padded to whole steps of their own, so that no step meets two scales.
struct MatrixLayout {
  WeightType type = WeightType::kF32;
  Split split = Split::kByOutput;
  std::int64_t k = 0;           // K of the whole matrix
  std::int64_t n = 0;           // N of the whole matrix
  std::int64_t group_rows = 0;  // integers: rows that share a scale; otherwise 0
  Range experts{0, 1};          // experts of the stack that are held, global ids
  Range chunks{0, 1};           // kByInput: chunks held; kByOutput: {0, 1}
  Range columns;                // columns of y owned, global; kByInput: {0, n}

  std::int64_t num_experts() const { return experts.size(); }
  std::int64_t num_chunks() const { return chunks.size(); }
  Range blocks() const;  // 64-column blocks held, global
  std::int64_t stored_columns() const { return blocks().size() * kBlockColumns; }
  /// Columns in front of the first owned one in the first stored block.
  std::int64_t column_offset() const { return columns.begin - blocks().begin * kBlockColumns; }

  /// Global k rows of the chunk with that global number: all of K for kByOutput.
  Range ChunkRows(std::int64_t chunk) const;
  /// Global k rows that the operand x must hold: those of all chunks held.
  Range InputRows() const;
  /// Groups that chunk touches; 1 for a type without scales.
  std::int64_t ChunkGroups(std::int64_t chunk) const;
  /// The rows of the chunk's group number `group` (0 …), global k.
  Range GroupRows(std::int64_t chunk, std::int64_t group) const;
  /// 4-byte steps of one block of that chunk.
  std::int64_t ChunkSteps(std::int64_t chunk) const;

  std::int64_t BlockBytes(std::int64_t chunk) const {
    return ChunkSteps(chunk) * kBlockColumns * 4;
  }
  /// From one expert's data to the next's.
  std::int64_t ExpertBytes() const;
  std::int64_t WeightBytes() const { return ExpertBytes() * num_experts(); }
  /// Scales: f32 [expert][chunk][group][stored_columns]; 0 for a type without.
  std::int64_t ExpertScales() const;
  std::int64_t ScaleBytes() const { return ExpertScales() * num_experts() * 4; }

  bool operator==(const MatrixLayout&) const = default;
};

inline std::int64_t RowsPerStep(WeightType type) {
  switch (type) {
    case WeightType::kInt4:
      return 8;
    case WeightType::kInt8:
      return 4;
    case WeightType::kBf16:
      return 2;
    case WeightType::kF32:
      break;
  }
  return 1;
}

inline bool HasScales(WeightType type) {
  return type == WeightType::kInt8 || type == WeightType::kInt4;
}

/// A matrix, or a stack of experts' matrices, as packed for the kernels. Owns nothing. It may be
/// part of a larger one: then its pieces lie further apart than its own layout says.
struct PackedMatrix {
  MatrixLayout layout;
  const std::byte* data = nullptr;  // of the first expert, 64-byte aligned
  const float* scales = nullptr;    // of the first expert, or null
  Device device = Device::kCpu;
  // The layout in whose memory `data` and `scales` point, when that is not `layout` itself.
  std::optional<MatrixLayout> within = std::nullopt;

  bool empty() const { return data == nullptr; }
  /// The layout that says how far apart experts and groups of scales lie.
  const MatrixLayout& strides() const { return within ? *within : layout; }
};

/// The part of a matrix that `part` describes, where it lies. `part` must be within `whole`: the
/// same matrix and split, some of its experts, chunks and columns.
PackedMatrix PartOf(const PackedMatrix& whole, const MatrixLayout& part);

/// Where the bytes of that part's data lie in the whole's: ascending, neighbours joined.
std::vector<Range> DataRanges(const MatrixLayout& whole, const MatrixLayout& part);
/// The same of its scales.
std::vector<Range> ScaleRanges(const MatrixLayout& whole, const MatrixLayout& part);

/// Where the unpacked weights lie: a row-major matrix in a file, unaligned.
struct UnpackedMatrix {
  const std::byte* data = nullptr;  // f32, bf16 or i8 by the layout's type; i8 −8 … 7 for int4
  bool output_major = false;        // [N, K] (Hugging Face) instead of [K, N] (xAI)
  const std::byte* scales = nullptr;  // integers: bf16 [groups, N], unaligned
};

/// Packs one expert's matrix (or the only one) into its place in `data` and `scales`: the part that
/// `layout` describes. `expert` is its number in the rank's stack. Threads share the blocks.
void PackMatrix(const MatrixLayout& layout, std::int64_t expert, const UnpackedMatrix& source,
                std::byte* data, float* scales);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PACKED_MATRIX_H_

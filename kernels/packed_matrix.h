#ifndef JUBAL_KERNELS_PACKED_MATRIX_H_
#define JUBAL_KERNELS_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/chunks.h"
#include "kernels/tensor.h"

namespace jubal {

/// How weights are stored. int8 keeps the checkpoint's integers and its scales.
enum class WeightType : std::uint8_t { kF32, kBf16, kInt8 };

std::string_view NameOf(WeightType type);

/// How a matrix y = x · W, W [K, N], is divided among ranks.
enum class Split : std::uint8_t {
  kByOutput,  // over N: a rank has whole columns of y; K is never divided
  kByInput,   // over K: a rank has some of the 8 chunks, and adds partial products
};

/// Rows of one block: 64 neighbouring columns of W.
inline constexpr std::int64_t kBlockColumns = 64;

/// Which part of a weight matrix, or of a stack of experts' matrices, a rank holds, and how it lies
/// in memory. Plain numbers: this one description sizes the budget, guides the packer and drives
/// the kernels.
///
/// Memory order: expert, chunk (one only for kByOutput), 64-column block, then steps of 4 bytes of
/// consecutive k (int8: 4 k, bf16: 2 k, f32: 1 k), each step 64 columns wide:
/// [expert][chunk][block][step][64][k in step]. int8 is stored as w + 128; padding is w = 0 there,
/// so 128. A block is 64-byte aligned. The columns of the first and last block that the rank does
/// not own are stored too.
///
/// int8 has one scale per column and group of `group_rows` consecutive k. Within a chunk each
/// group's rows are padded to whole steps of their own, so that no step meets two scales.
struct MatrixLayout {
  WeightType type = WeightType::kF32;
  Split split = Split::kByOutput;
  std::int64_t k = 0;           // K of the whole matrix
  std::int64_t n = 0;           // N of the whole matrix
  std::int64_t group_rows = 0;  // int8: K / groups; otherwise 0
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
};

inline std::int64_t RowsPerStep(WeightType type) {
  return type == WeightType::kInt8 ? 4 : type == WeightType::kBf16 ? 2 : 1;
}

/// A matrix, or a stack of experts' matrices, as packed for the kernels. Owns nothing.
struct PackedMatrix {
  MatrixLayout layout;
  const std::byte* data = nullptr;  // layout.WeightBytes(), 64-byte aligned
  const float* scales = nullptr;    // layout.ScaleBytes(), or null
  Device device = Device::kCpu;

  bool empty() const { return data == nullptr; }
};

/// Where the unpacked weights lie: a row-major matrix in a file, unaligned.
struct UnpackedMatrix {
  const std::byte* data = nullptr;    // type f32, bf16 or i8, by the layout's type
  bool output_major = false;          // [N, K] (Hugging Face) instead of [K, N] (xAI)
  const std::byte* scales = nullptr;  // int8: bf16 [groups, N], unaligned
};

/// Packs one expert's matrix (or the only one) into its place in `data` and `scales`: the part that
/// `layout` describes. `expert` is its number in the rank's stack. Threads share the blocks.
void PackMatrix(const MatrixLayout& layout, std::int64_t expert, const UnpackedMatrix& source,
                std::byte* data, float* scales);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PACKED_MATRIX_H_

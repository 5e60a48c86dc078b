#ifndef JUBAL_KERNELS_BLOCK_PRODUCT_H_
#define JUBAL_KERNELS_BLOCK_PRODUCT_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/matmul_tiles.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

// What the CPU forms of all products are made of: rows of x made into integers, and the product of
// a few rows with one 64-column block. Neither waits for anybody; callers share the work.

/// Where a chunk lies in a matrix's memory and in a row of x.
struct ChunkPlace {
  std::int64_t chunk = 0;  // global number
  std::int64_t groups = 0;
  std::int64_t data = 0;  // bytes from the expert's to the chunk's first block
  std::int64_t block_bytes = 0;
  std::int64_t scales = 0;      // floats from the expert's to the chunk's first group
  std::int64_t x = 0;           // elements of a row of x before the chunk's
  std::int64_t first_step = 0;  // of a row of integers: a step is 4 of them
  std::int64_t first_run = 0;   // a run is what one Σa is kept for: 512 k at most, of one group
};

struct ChunkPlaces {
  /// `strides` says how far apart things lie: PackedMatrix::strides().
  ChunkPlaces(const MatrixLayout& layout, const MatrixLayout& strides);

  std::array<ChunkPlace, kChunks> chunks;
  std::int64_t steps = 0;  // of all chunks
  std::int64_t runs = 0;
};

/// Rows of x as the integers that meet int8 and int4 weights. Any matrix of the same K, type,
/// groups, split and chunks can use them. Does nothing for other types.
class QuantisedRows {
 public:
  static std::int64_t Bytes(const MatrixLayout& layout, std::int64_t rows);

  /// workspace: ≥ Bytes(layout, rows), 64-byte aligned.
  QuantisedRows(const MatrixLayout& layout, std::byte* workspace, std::int64_t rows);

  /// The part of a row of x that lies in the layout's chunk number `index` (0 …). Writes no other
  /// part's memory.
  void Quantise(const float* x, std::int64_t row, std::int64_t index) const;

  const std::byte* values(std::int64_t row) const { return values_ + row * stride(); }
  std::int64_t stride() const { return Stride(places_); }  // bytes
  const std::int32_t* sums(std::int64_t row) const { return sums_ + row * places_.runs; }
  std::int64_t sums_stride() const { return places_.runs; }
  /// Quantises every row of x. All threads of a parallel region call it and share the work; it
  /// returns when all of it is done.
  void QuantiseAll(ConstTensorView x, std::int64_t rows) const;

  float scale(std::int64_t row, std::int64_t index) const {
    return scales_[row * layout_.num_chunks() + index];
  }

 private:
  static std::int64_t Stride(const ChunkPlaces& places);

  const MatrixLayout layout_;
  const ChunkPlaces places_;
  std::byte* values_ = nullptr;   // [rows], stride() apart: [steps][8]
  std::int32_t* sums_ = nullptr;  // [rows][runs]
  float* scales_ = nullptr;       // [rows][chunks]
};

/// A few rows of x, which meet the same weights.
struct RowRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;  // kPanelRows at most
};

/// Sums of one block over the chunks held: the maximal subtrees' partial products.
struct BlockSums {
  // Chunks 1 … 7 keep the most partial sums open: {1} {2,3} {4,5} {6} {7}.
  static constexpr int kMostPlanes = 5;

  int planes = 0;
  alignas(64) float values[kMostPlanes][kPanelRows * kBlockColumns];  // [plane][row][64]
};

class BlockProduct {
 public:
  /// x: [rows, K of the chunks held] f32, read for weights of float type only.
  BlockProduct(const PackedMatrix& weight, ConstTensorView x, const QuantisedRows& quantised);

  std::int64_t blocks() const { return blocks_; }

  /// `next`: weights that the caller will want next.
  void Sum(std::int64_t expert, std::int64_t block, RowRange rows, const std::uint8_t* next,
           BlockSums& sums) const;
  /// The first weights of a block.
  const std::uint8_t* Weights(std::int64_t expert, std::int64_t block) const {
    return ChunkWeights(expert, block, 0);
  }

  /// Columns of the block that the rank owns, of its 64.
  Range OwnedColumns(std::int64_t block) const;
  /// Writes multiplier · sums, [rows][64], to the owned columns' place in those rows of `out`,
  /// whose rows lie out_stride elements apart.
  void Store(std::int64_t block, RowRange rows, const float* sums, float multiplier, float* out,
             std::int64_t out_stride) const;

 private:
  const std::uint8_t* ChunkWeights(std::int64_t expert, std::int64_t block,
                                   std::int64_t index) const;
  void SumFloats(std::int64_t expert, std::int64_t block, RowRange rows, std::int64_t index,
                 const std::uint8_t* next, float* leaf) const;
  void SumInt8(std::int64_t expert, std::int64_t block, RowRange rows, std::int64_t index,
               const std::uint8_t* next, float* leaf) const;
  void SumInt4(std::int64_t expert, std::int64_t block, RowRange rows, std::int64_t index,
               const std::uint8_t* next, float* leaf) const;
  const float* Scales(std::int64_t expert, std::int64_t block, const ChunkPlace& place) const;

  const PackedMatrix& weight_;
  const MatrixLayout& layout_;
  const ConstTensorView x_;
  const QuantisedRows& quantised_;
  const MatmulTiles& tiles_;
  const ChunkPlaces places_;
  const std::int64_t blocks_;
  const std::int64_t expert_bytes_;
  const std::int64_t expert_scales_;
  const std::int64_t scales_stride_;
};

/// What the contracts of all products ask of an operand and of the workspace.
void CheckFloats(ConstTensorView view, int rank, Device device);
void CheckWorkspace(ConstTensorView workspace, std::int64_t needed, Device device);
bool Overlap(ConstTensorView a, ConstTensorView b);

/// The `part`-th of so many nearly equal parts of `rows`, whole fours but for the last.
RowRange PanelOf(Range rows, std::int64_t part, std::int64_t parts);
/// Parts that leave kPanelRows at most in each.
std::int64_t PanelsOf(Range rows);

}  // namespace jubal

#endif  // JUBAL_KERNELS_BLOCK_PRODUCT_H_

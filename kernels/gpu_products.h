#ifndef JUBAL_KERNELS_GPU_PRODUCTS_H_
#define JUBAL_KERNELS_GPU_PRODUCTS_H_

#include <array>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/packed_matrix.h"

namespace jubal {

// How the GPU forms of all products divide their work: plain numbers, which the plan of memory
// needs on machines without a GPU, too.

/// k that a run covers at most.
inline constexpr std::int64_t kRunRows = 512;
/// k of one slab: 8 steps of weights, what an instruction of tensor cores takes (of int4 two).
inline constexpr std::int64_t kSlabSteps = 8;
inline std::int64_t SlabRows(WeightType type) { return kSlabSteps * RowsPerStep(type); }

/// Beside weights of these types a GPU needs rows of x in two planes, high and low, which add up to
/// x: integers of 8 bits each, or bfloat16. They lie [row][slab][4 bytes of k][high, low]; each
/// scale group of a chunk begins with a slab, and what its last one lacks is 0.
inline bool HasPlanes(WeightType type) { return type != WeightType::kF32; }
/// Bytes of one slab of one row.
inline std::int64_t SlabBytes(WeightType type) { return type == WeightType::kInt4 ? 128 : 64; }
std::int64_t ChunkSlabs(const MatrixLayout& layout, std::int64_t chunk);

/// Where the partial products of a rank's chunks, which come in order, are kept until they have
/// become maximal subtrees: a stack of nodes that are not complete.
struct ChunkTree {
  explicit ChunkTree(Range chunks);

  // The chunk's product finds so many nodes below it, takes those from `kept` on from the left, and
  // is put in their place.
  std::array<int, kChunks> below{};
  std::array<int, kChunks> kept{};
  int nodes = 0;    // kept at the same time, at most
  int results = 0;  // subtrees in the end
};

/// With so few rows each chunk has thread blocks of its own, and the tree is added up afterwards.
inline constexpr std::int64_t kMostRowsOfSplitChunks = 128;

/// What a product needs beside its operands, and where in the workspace.
struct GpuProductWorkspace {
  GpuProductWorkspace(const MatrixLayout& layout, std::int64_t rows);

  std::int64_t row_slabs = 0;  // of one row of x
  // Byte offsets, multiples of 64.
  std::int64_t scales = 0;  // f32 [rows][chunks]; in front of them the planes of x
  std::int64_t nodes = 0;   // f32 [nodes][rows][n], kByInput
  std::int64_t bytes = 0;   // of all
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_GPU_PRODUCTS_H_

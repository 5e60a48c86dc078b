#ifndef JUBAL_KERNELS_CUDA_TILE_H_
#define JUBAL_KERNELS_CUDA_TILE_H_

// A tile is what one thread block computes: the product of one or two neighbouring 64-column blocks
// of one chunk with a few rows of x. Its type says how:
//
//   kType, kRows, kBlocks   the weights' type, and rows and blocks at most
//   kResident               thread blocks of a multiprocessor that registers must suffice for
//   Shared                  the thread block's shared memory
//   Multiply(shared, operands, emit)
//       reached by all threads; calls emit(row, column, sum) for each row and each column of the
//       blocks there are, each in one thread, the same for every chunk
//
// How many rows there are, and which tile computes them, changes no bit.

#include "kernels/cuda/device.h"
#include "kernels/packed_matrix.h"

namespace jubal {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileWarps = kTileThreads / kWarp;
inline constexpr int kBlockWidth = 64;
/// Shared memory that a thread block may have on every GPU since Ampere.
inline constexpr std::size_t kMostSharedBytes = 99 * 1024;

/// The start of a sum of so many runs. Of floats it is −0, which leaves what is added to it as it
/// is, the sign of 0 included.
__device__ __forceinline__ float NoRuns(WeightType type, int runs) {
  return type == WeightType::kInt8 || type == WeightType::kInt4 || runs == 0 ? 0.0f : -0.0f;
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_TILE_H_

#ifndef JUBAL_KERNELS_CUDA_FLOAT_TILE_H_
#define JUBAL_KERNELS_CUDA_FLOAT_TILE_H_

// Products with weights of float32: routers, which are narrow; embeddings' transposes, which are
// wide; and small models.

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/tile.h"

namespace jubal {

struct FloatOperands {
  int k;                 // of the chunk
  const float* weights;  // the chunk's first k of the block: [k][64]
  const float* x;        // the chunk's first k of the first row
  std::int64_t x_stride;
  int rows;
};

/// One block, of which the first kColumns columns are wanted, and 8 rows of x. Each warp takes a
/// run of 512 k at a time, one chain of fused multiply-adds for each sum; runs meet in shared
/// memory, where they are added up in order.
template <int kColumns>
struct FloatTile {
  static constexpr WeightType kType = WeightType::kF32;
  static constexpr int kRows = 8;
  static constexpr int kBlocks = 1;
  static constexpr int kResident = 1;
  static constexpr int kRun = 512;

  // A lane's share of a run: kLaneColumns columns of kLaneRows rows.
  static constexpr int kLaneColumns = kColumns == kBlockWidth ? 2 : 1;
  static constexpr int kLaneRows = kRows * kColumns / kLaneColumns / kWarp;
  // A stage is 4 KiB of weights, whatever the number of columns.
  static constexpr int kStageK = 1024 / kColumns;
  static constexpr int kStages = 2;
  static constexpr int kPieces = kColumns / 4;  // of 16 bytes of one k
  static constexpr int kResults =
      kRows * kColumns > kTileThreads ? kRows* kColumns / kTileThreads : 1;

  struct WarpShared {
    uint4 weights[kStages][kStageK][kPieces];
    float x[kStageK][kRows];
  };
  struct Shared {
    WarpShared warps[kTileWarps];
    float sums[kTileWarps][kRows][kColumns];
  };

  template <class Emit>
  __device__ static void Multiply(Shared& shared, const FloatOperands& operands, const Emit& emit) {
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    const int runs = DivideUp(operands.k, kRun);
    float totals[kResults];
#pragma unroll
    for (int i = 0; i < kResults; ++i) totals[i] = NoRuns(kType, runs);
    for (int round = 0; round < runs; round += kTileWarps) {
      if (round + warp < runs) SumRun(shared, operands, round + warp);
      __syncthreads();
      const int slots = min(kTileWarps, runs - round);
      for (int slot = 0; slot < slots; ++slot) {
#pragma unroll
        for (int i = 0; i < kResults; ++i) {
          const int result = thread + i * kTileThreads;
          if (result < kRows * kColumns) {
            totals[i] += shared.sums[slot][result / kColumns][result % kColumns];
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int result = thread + i * kTileThreads;
      const int row = result / kColumns;
      if (row < operands.rows) emit(row, result % kColumns, totals[i]);
    }
  }

  __device__ __forceinline__ static void SumRun(Shared& shared, const FloatOperands& operands,
                                                int run) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    constexpr int kColumnLanes = kColumns / kLaneColumns;
    const int column = lane % kColumnLanes * kLaneColumns;
    const int first_row = lane / kColumnLanes * kLaneRows;
    WarpShared& own = shared.warps[warp];
    const int begin = run * kRun;
    const int count = min(kRun, operands.k - begin);
    const int stages = DivideUp(count, kStageK);

    int copied = 0;
    const auto copy = [&] {
      if (copied < stages) {
        const int first = copied * kStageK;
        for (int i = lane; i < kStageK * kPieces; i += kWarp) {
          const int k = i / kPieces;
          if (first + k >= count) break;
          CopyAsync16(&own.weights[copied % kStages][k][i % kPieces],
                      operands.weights +
                          static_cast<std::int64_t>(begin + first + k) * kBlockWidth +
                          i % kPieces * 4);
        }
      }
      ++copied;
      CommitCopies();
    };
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) copy();

    float sums[kLaneRows][kLaneColumns] = {};
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      const int first = stage * kStageK;
      const int stage_k = min(kStageK, count - first);
      __syncwarp();  // the stage before has been read
      copy();
      for (int i = lane; i < kStageK * kRows; i += kWarp) {
        const int row = i / kStageK;
        const int k = i % kStageK;
        own.x[k][row] = row < operands.rows && k < stage_k
                            ? operands.x[row * operands.x_stride + begin + first + k]
                            : 0.0f;
      }
      WaitForCopies<kStages - 1>();
      __syncwarp();
      const uint4(*weights)[kPieces] = own.weights[stage % kStages];
      const auto add = [&](int k) {
        const float* of_k = reinterpret_cast<const float*>(weights[k]) + column;
        const float* x = &own.x[k][first_row];
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
          for (int c = 0; c < kLaneColumns; ++c) sums[r][c] = __fmaf_rn(x[r], of_k[c], sums[r][c]);
        }
      };
      if (stage_k == kStageK) {
#pragma unroll 8
        for (int k = 0; k < kStageK; ++k) add(k);
      } else {
#pragma unroll 1
        for (int k = 0; k < stage_k; ++k) add(k);
      }
    }
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        shared.sums[warp][first_row + r][column + c] = sums[r][c];
      }
    }
    __syncwarp();
  }
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_FLOAT_TILE_H_

#ifndef JUBAL_KERNELS_CUDA_WIDE_TILE_H_
#define JUBAL_KERNELS_CUDA_WIDE_TILE_H_

#include "kernels/cuda/mma_operands.h"

namespace jubal {

/// Two blocks and many rows of x: each warp takes one block and kWarpRows rows, slab by slab, which
/// all warps copy to shared memory some slabs ahead. A chunk of several groups must have no group
/// of more than one run.
template <WeightType kTypeOfWeights>
struct WideTile {
  static constexpr WeightType kType = kTypeOfWeights;
  // Sums over runs are needed once in 512 k, but with int4 once in a group: then all of them stay
  // in registers, which leaves room for half the rows.
  static constexpr int kWarpRows = kType == WeightType::kInt4 ? 16 : 32;
  static constexpr int kBlocks = 2;
  static constexpr int kRowWarps = kTileWarps / kBlocks;
  static constexpr int kRows = kWarpRows * kRowWarps;
  static constexpr int kTiles = kWarpRows / 8;
  static constexpr int kResident = 1;
  static constexpr int kStages = 4;

  using Traits = MmaTraits<kType>;
  using Cut = ChunkCut<kType>;
  static constexpr int kRowPieces = SlabOfX<kType>::kLength / 2;  // of 16 bytes
  static constexpr int kResults = 2 * 2 * kTiles * 4;             // of a thread
  static constexpr int kInRegisters = kType == WeightType::kInt4 ? kResults : 14;

  struct Stage {
    uint4 weights[kBlocks][8][kStepWords];
    uint4 x[kRows][kRowPieces];
  };
  struct Shared {
    Stage stages[kStages];
    float results[kResults > kInRegisters ? kResults - kInRegisters : 1]
                 [kTileThreads];  // each thread's own
  };

  /// Sums over the runs of a chunk, so far.
  struct Results {
    float in_registers[kInRegisters];

    __device__ __forceinline__ float& At(Shared& shared, int r) {
      return r < kInRegisters ? in_registers[r] : shared.results[r - kInRegisters][threadIdx.x];
    }
  };

  // What a warp reads at a time lies in different banks.
  __device__ __forceinline__ static int PlaceOfWeights(int step, int piece) {
    return piece ^ (step % 4 * 2);
  }
  __device__ __forceinline__ static int PlaceOfX(int row, int piece) {
    return kType == WeightType::kInt4 ? piece ^ (row % 2 * 4) : piece ^ (row / 2 % 2 * 2);
  }

  /// Where a slab stands in the chunk.
  struct Position {
    int group = 0;
    int slab = 0;  // in the group
    int slabs = 0;
    int step = 0;  // the slab's first
    int step_end = 0;

    __device__ void Enter(const Cut& cut) {
      slab = 0;
      slabs = cut.Slabs(group);
      step = cut.FirstStep(group);
      step_end = step + cut.Steps(group);
    }
    __device__ void Advance(const Cut& cut) {
      step += 8;
      if (++slab < slabs) return;
      if (++group < cut.groups) Enter(cut);
    }
  };

  template <class Emit>
  __device__ static void Multiply(Shared& shared, const MmaOperands<kType>& operands,
                                  const Emit& emit) {
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    const int g = thread % kWarp / 4;
    const int t = thread % 4;
    const int block = warp / kRowWarps;
    const int first_row = warp % kRowWarps * kWarpRows;
    const bool busy = block < operands.blocks && first_row < operands.rows;
    const Cut& cut = operands.cut;
    const int slabs =
        cut.groups == 0 ? 0 : cut.FirstSlab(cut.groups - 1) + cut.Slabs(cut.groups - 1);

    // The thread copies 16 bytes of a step of weights, and some of the same piece of several rows.
    static_assert(kBlocks * 8 * kStepWords == kTileThreads);
    constexpr int kCopiedRows = kTileThreads / kRowPieces;
    static_assert(kRows % kCopiedRows == 0);
    const int own_block = thread / (8 * kStepWords);
    const int own_step = thread / kStepWords % 8;
    const int own_piece = thread % kStepWords;
    const int own_row = thread / kRowPieces;
    const int row_piece = thread % kRowPieces;
    const uint4* weights_from =
        operands.weights + own_block * operands.block + own_step * kStepWords + own_piece;
    const uint2* x_from = operands.x + own_row * operands.x_stride + 2 * row_piece;
    Position next;
    next.Enter(cut);
    int copied = 0;
    const auto copy = [&] {
      if (copied < slabs) {
        Stage& stage = shared.stages[copied % kStages];
        uint4* to = &stage.weights[own_block][own_step][PlaceOfWeights(own_step, own_piece)];
        if (own_block < operands.blocks && next.step + own_step < next.step_end) {
          CopyAsync16(to, weights_from + next.step * kStepWords);
        } else {
          *to = uint4{0, 0, 0, 0};
        }
        const uint2* from = x_from + copied * SlabOfX<kType>::kLength;
        for (int row = own_row; row < operands.rows; row += kCopiedRows) {
          CopyAsync16(&stage.x[row][PlaceOfX(row, row_piece)], from);
          from += kCopiedRows * operands.x_stride;
        }
        next.Advance(cut);
      }
      ++copied;
      CommitCopies();
    };

    __syncthreads();  // the chunk before may still be read
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) copy();

    RunSums<kType, 2, kTiles> sums;
    sums.Clear();
    Results results;
#pragma unroll
    for (int r = 0; r < kResults; ++r) results.At(shared, r) = NoRuns(kType, slabs);
    Position at;
    at.Enter(cut);
#pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
      WaitForCopies<kStages - 2>();
      __syncthreads();
      copy();
      const bool ends_run = at.slab + 1 == at.slabs || (at.slab + 1) % Traits::kRunSlabs == 0;
      const int group = at.group;
      at.Advance(cut);
      if (!busy) continue;
      const Stage& stage = shared.stages[slab % kStages];
      SlabOfWeights<2> weights;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int half_slab = 0; half_slab < 2; ++half_slab) {
          const int step = t + 4 * half_slab;
          weights.words[h][half_slab] = stage.weights[block][step][PlaceOfWeights(step, 8 * h + g)];
        }
      }
      sums.Add(weights, [&](int n) {
        const int row = first_row + 8 * n + g;
        SlabOfX<kType> of_x;
#pragma unroll
        for (int half_slab = 0; half_slab < 2; ++half_slab) {
          if constexpr (kType == WeightType::kInt4) {
            SlabOfX<kType>::Cut(stage.x[row][PlaceOfX(row, t + 4 * half_slab)],
                                of_x.words[2 * half_slab], of_x.words[2 * half_slab + 1]);
          } else {
            of_x.words[half_slab] = reinterpret_cast<const uint2*>(
                &stage.x[row][PlaceOfX(row, t / 2 + 2 * half_slab)])[t % 2];
          }
        }
        return of_x;
      });
      if (!ends_run) continue;
      const float* scales = nullptr;
      if constexpr (kType != WeightType::kBf16) {
        if (cut.groups > 1) scales = ScalesOf(operands, group, block, g);
      }
      ForEach([&](int r, int h, int i, int n, int e) {
        if (r % 16 == 0) __syncwarp();  // or the compiler reads all of them at once, into registers
        const float scale = scales == nullptr ? 1.0f : scales[32 * h + 2 * i + e / 2];
        results.At(shared, r) += static_cast<float>(sums.Value(h, i, n, e)) * scale;
      });
      sums.Clear();
    }
    WaitForCopies<0>();
    if (!busy) return;
    const float* scales = nullptr;
    if constexpr (kType != WeightType::kBf16) {
      if (cut.groups == 1) scales = ScalesOf(operands, 0, block, g);
    }
    ForEach([&](int r, int h, int i, int n, int e) {
      const int row = first_row + 8 * n + 2 * t + e % 2;
      if (row >= operands.rows) return;
      float sum = results.At(shared, r);
      // As one group added to nothing: the sign of 0 is its.
      if (scales != nullptr) sum = 0.0f + sum * scales[32 * h + 2 * i + e / 2];
      emit(row, block * kBlockWidth + 32 * h + 4 * g + 2 * i + e / 2, sum);
    });
  }

  /// From the lane's first column on.
  __device__ __forceinline__ static const float* ScalesOf(const MmaOperands<kType>& operands,
                                                          int group, int block, int g) {
    return operands.scales + group * operands.scales_stride + block * kBlockWidth + 4 * g;
  }

  /// visit(number, half, i, tile, element) for a thread's sums.
  template <class Visit>
  __device__ __forceinline__ static void ForEach(const Visit& visit) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) visit(((h * 2 + i) * kTiles + n) * 4 + e, h, i, n, e);
        }
      }
    }
  }
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_WIDE_TILE_H_

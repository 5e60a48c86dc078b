#ifndef JUBAL_KERNELS_CUDA_NARROW_TILE_H_
#define JUBAL_KERNELS_CUDA_NARROW_TILE_H_

#include "kernels/cuda/mma_operands.h"

namespace jubal {

/// One block and a few rows of x. The warps share k: each takes a unit of it in turn, and the
/// units' sums meet in shared memory, where they are added up in the order of k.
template <WeightType kTypeOfWeights, int kRowsOfX>
struct NarrowTile {
  static constexpr WeightType kType = kTypeOfWeights;
  static constexpr int kRows = kRowsOfX;
  static constexpr int kBlocks = 1;
  static constexpr int kResident =
      kRows == 8 || (kRows == 16 && kTypeOfWeights != WeightType::kInt4) ? 2 : 1;

  using Traits = MmaTraits<kType>;
  using Cut = ChunkCut<kType>;
  // A unit is part of a run where sums are exact; otherwise a run. As a group of int4 may be small,
  // a warp takes several of them at a time.
  static constexpr int kUnitSlabs = kType == WeightType::kInt8 ? 4 : Traits::kRunSlabs;
  static constexpr int kUnitsOfRun = Traits::kRunSlabs / kUnitSlabs;
  static constexpr int kUnits = kType == WeightType::kBf16                  ? 1
                                : kType == WeightType::kInt8 || kRows == 32 ? 2
                                                                            : 4;
  static constexpr int kColumnWarps = 2;
  static constexpr int kUnitWarps = kTileWarps / kColumnWarps;
  static constexpr int kSlots = kUnitWarps * kUnits;
  static constexpr int kHalves = 2 / kColumnWarps;
  static constexpr int kTiles = kRows / 8;
  static constexpr int kAhead = kRows == 16 && kResident == 2 ? 2 : 3;  // slabs under way
  // So that the rows that a warp writes to lie in different banks.
  static constexpr int kPitch = kBlockWidth + 4;
  static constexpr int kResults = kRows * kBlockWidth / kTileThreads;  // of a thread

  // int8: the unit's integers; otherwise what the run adds to the sum.
  using Slot = std::conditional_t<kType == WeightType::kInt8, std::int32_t, float>;
  struct alignas(16) FourSlots {
    Slot columns[4];
  };
  // Each thread's own: one column of a few rows. It needs them once in a round, and its registers
  // all the time.
  struct Results {
    static constexpr int kIntegers = kType == WeightType::kInt8 ? kResults : 1;
    float totals[kResults][kTileThreads];
    float flushes[kIntegers][kTileThreads];      // int8: of the group so far
    std::int32_t dots[kIntegers][kTileThreads];  // int8: of the run so far
  };
  struct Shared {
    alignas(16) Slot sums[kSlots][kRows][kPitch];
    Results results;
  };

  /// One unit of the chunk.
  struct Unit {
    int group, slab, slabs, step, step_end;
  };
  struct Units {
    __device__ explicit Units(const Cut& c) : cut(c) {
      first = DivideUp(cut.first_rows, Cut::kRowsPerSlab * kUnitSlabs);
      middle = max(1, DivideUp(cut.group_rows, Cut::kRowsPerSlab * kUnitSlabs));
      count = cut.groups == 0 ? 0 : first;
      if (cut.groups > 1) {
        count += (cut.groups - 2) * middle +
                 DivideUp(cut.Rows(cut.groups - 1), Cut::kRowsPerSlab * kUnitSlabs);
      }
    }
    __device__ int Group(int unit) const { return unit < first ? 0 : 1 + (unit - first) / middle; }
    __device__ int InGroup(int unit) const { return unit < first ? unit : (unit - first) % middle; }
    __device__ int OfGroup(int group) const {
      return DivideUp(cut.Rows(group), Cut::kRowsPerSlab * kUnitSlabs);
    }
    __device__ Unit At(int unit) const {
      const int group = Group(unit);
      const int slab = InGroup(unit) * kUnitSlabs;
      return {.group = group,
              .slab = cut.FirstSlab(group) + slab,
              .slabs = min(kUnitSlabs, cut.Slabs(group) - slab),
              .step = cut.FirstStep(group) + slab * 8,
              .step_end = cut.FirstStep(group) + cut.Steps(group)};
    }

    Cut cut;
    int first, middle, count;
  };

  /// The slabs that a warp multiplies, one after the other.
  class Slabs {
   public:
    __device__ Slabs(const Units& units, int warp, const uint4* weights, int t)
        : units_(units), weights_(weights), t_(t), unit_(warp * kUnits) {
      if (unit_ < units_.count) at_ = units_.At(unit_);
    }
    __device__ __forceinline__ void Load(SlabOfWeights<kHalves>& to) {
      if (unit_ >= units_.count) return;
#pragma unroll
      for (int half_slab = 0; half_slab < 2; ++half_slab) {
        const int step = at_.step + slab_ * 8 + half_slab * 4;
        const bool inside = step + t_ < at_.step_end;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          to.words[h][half_slab] =
              inside ? LoadStreaming(weights_ + step * kStepWords + 8 * h) : uint4{0, 0, 0, 0};
        }
      }
      if (++slab_ < at_.slabs) return;
      slab_ = 0;
      if (++unit_ % kUnits == 0) unit_ += kSlots - kUnits;
      if (unit_ < units_.count) at_ = units_.At(unit_);
    }

   private:
    const Units& units_;
    const uint4* weights_;
    int t_;
    int unit_;
    int slab_ = 0;
    Unit at_{};
  };

  template <class Emit>
  __device__ static void Multiply(Shared& shared, const MmaOperands<kType>& operands,
                                  const Emit& emit) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
    const int t = static_cast<int>(threadIdx.x) % 4;
    const int first_half = warp % kColumnWarps * kHalves;
    const int unit_warp = warp / kColumnWarps;

    const Units units(operands.cut);
    Slabs slabs(units, unit_warp, operands.weights + t * kStepWords + first_half * 8 + g, t);
    SlabOfWeights<kHalves> ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) slabs.Load(ahead[i]);
    const int most_row = operands.rows - 1;

    ClearResults(shared.results, units.count);
    for (int round = 0; round < units.count; round += kSlots) {
#pragma unroll 1
      for (int i = 0; i < kUnits; ++i) {
        const int slot = unit_warp * kUnits + i;
        if (round + slot >= units.count) break;
        const Unit unit = units.At(round + slot);
        float scales[kHalves][4];
        if constexpr (kType == WeightType::kInt4) {
          const float* from =
              operands.scales + unit.group * operands.scales_stride + first_half * 32 + 4 * g;
#pragma unroll
          for (int h = 0; h < kHalves; ++h) {
#pragma unroll
            for (int c = 0; c < 4; ++c) scales[h][c] = from[32 * h + c];
          }
        }
        RunSums<kType, kHalves, kTiles> sums;
        sums.Clear();
#pragma unroll 1
        for (int slab = 0; slab < unit.slabs; ++slab) {
          SlabOfX<kType> of_x[kTiles];
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            of_x[n].Load(operands.x + min(8 * n + g, most_row) * operands.x_stride +
                             (unit.slab + slab) * SlabOfX<kType>::kLength,
                         t);
          }
          const SlabOfWeights<kHalves> weights = ahead[0];
#pragma unroll
          for (int j = 0; j + 1 < kAhead; ++j) ahead[j] = ahead[j + 1];
          slabs.Load(ahead[kAhead - 1]);
          sums.Add(weights, [&](int n) -> const SlabOfX<kType>& { return of_x[n]; });
        }
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
              FourSlots four;
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                const auto sum = sums.Value(h, c / 2, n, c % 2 * 2 + row);
                if constexpr (kType == WeightType::kInt4) {
                  four.columns[c] = static_cast<float>(sum) * scales[h][c];
                } else {
                  four.columns[c] = sum;
                }
              }
              *reinterpret_cast<FourSlots*>(
                  &shared.sums[slot][8 * n + 2 * t + row][(first_half + h) * 32 + 4 * g]) = four;
            }
          }
        }
      }
      __syncthreads();
      AddSlots(shared, units, round, operands);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int row = RowOf(i);
      if (row < operands.rows) emit(row, Column(), shared.results.totals[i][threadIdx.x]);
    }
  }

  /// The column and the rows of a thread's results.
  __device__ static int Column() { return static_cast<int>(threadIdx.x) % kBlockWidth; }
  __device__ static int RowOf(int i) {
    return static_cast<int>(threadIdx.x) / kBlockWidth + i * (kTileThreads / kBlockWidth);
  }

  __device__ __forceinline__ static void ClearResults(Results& results, int units) {
    const unsigned thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      results.totals[i][thread] = NoRuns(kType, units);
      if constexpr (kType == WeightType::kInt8) {
        results.flushes[i][thread] = 0.0f;
        results.dots[i][thread] = 0;
      }
    }
  }

  __device__ __forceinline__ static void AddSlots(Shared& shared, const Units& units, int round,
                                                  const MmaOperands<kType>& operands) {
    const unsigned thread = threadIdx.x;
    const int slots = min(kSlots, units.count - round);
    float totals[kResults];
#pragma unroll
    for (int i = 0; i < kResults; ++i) totals[i] = shared.results.totals[i][thread];
    if constexpr (kType != WeightType::kInt8) {
      for (int slot = 0; slot < slots; ++slot) {
#pragma unroll
        for (int i = 0; i < kResults; ++i) totals[i] += shared.sums[slot][RowOf(i)][Column()];
      }
    } else {
      float flushes[kResults];
      std::int32_t dots[kResults];
#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        flushes[i] = shared.results.flushes[i][thread];
        dots[i] = shared.results.dots[i][thread];
      }
      int group = units.Group(round);
      int in_group = units.InGroup(round);
      int of_group = units.OfGroup(group);
      for (int slot = 0; slot < slots; ++slot) {
#pragma unroll
        for (int i = 0; i < kResults; ++i) dots[i] += shared.sums[slot][RowOf(i)][Column()];
        ++in_group;
        const bool ends = in_group == of_group;
        if (!ends && in_group % kUnitsOfRun != 0) continue;
#pragma unroll
        for (int i = 0; i < kResults; ++i) {
          flushes[i] += static_cast<float>(dots[i]);
          dots[i] = 0;
        }
        if (!ends) continue;
        const float scale = operands.scales[group * operands.scales_stride + Column()];
#pragma unroll
        for (int i = 0; i < kResults; ++i) {
          totals[i] += flushes[i] * scale;
          flushes[i] = 0.0f;
        }
        in_group = 0;
        if (++group < units.cut.groups) of_group = units.OfGroup(group);
      }
#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        shared.results.flushes[i][thread] = flushes[i];
        shared.results.dots[i][thread] = dots[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) shared.results.totals[i][thread] = totals[i];
  }
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_NARROW_TILE_H_

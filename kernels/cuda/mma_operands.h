#ifndef JUBAL_KERNELS_CUDA_MMA_OPERANDS_H_
#define JUBAL_KERNELS_CUDA_MMA_OPERANDS_H_

// Products on tensor cores. An MMA tile with one row of x waits for memory as any other code would,
// so there is no form for single rows beside these.
//
// Weights are operand A, straight from their packed layout: 16 "rows" of A are columns of the
// matrix. A lane (g = lane / 4, t = lane % 4) reads 4 columns, 4g … 4g + 3 of each half of a block,
// of steps t and t + 4 of a slab; MMA tile i of a half takes column 4g + 2i as row g and
// 4g + 2i + 1 as row g + 8. Rows of x are operand B, 8 at a time.
//
// Sums of integers are exact, so that only what follows them has an order: a run of 512 k at most,
// or a group, becomes a float and is added to the runs before it. For bf16 a run's sum is the
// instruction's own, slab by slab, high plane and low plane.

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/tile.h"

namespace jubal {

inline constexpr int kStepWords = kBlockWidth / 4;  // uint4s of a step

template <WeightType kType>
struct MmaTraits;
template <>
struct MmaTraits<WeightType::kInt8> {
  using Sum = std::int32_t;
  static constexpr int kSums = 2;  // high and low
  static constexpr int kMmas = 1;  // of a slab
  static constexpr int kRowsPerStep = 4;
  static constexpr int kRunSlabs = 16;
};
template <>
struct MmaTraits<WeightType::kInt4> {
  using Sum = std::int32_t;
  static constexpr int kSums = 2;
  static constexpr int kMmas = 2;
  static constexpr int kRowsPerStep = 8;
  static constexpr int kRunSlabs = 8;  // so that a group is one run
};
template <>
struct MmaTraits<WeightType::kBf16> {
  using Sum = float;
  static constexpr int kSums = 1;
  static constexpr int kMmas = 1;
  static constexpr int kRowsPerStep = 2;
  static constexpr int kRunSlabs = 32;
};

/// How the rows of a chunk are cut into scale groups, slabs and steps.
template <WeightType kType>
struct ChunkCut {
  static constexpr int kRowsPerStep = MmaTraits<kType>::kRowsPerStep;
  static constexpr int kRowsPerSlab = kRowsPerStep * 8;

  int rows;
  int first_rows;  // of group 0
  int group_rows;  // of the others but the last
  int groups;

  __device__ int Rows(int group) const {
    return group == 0 ? first_rows : min(group_rows, rows - first_rows - (group - 1) * group_rows);
  }
  __device__ int Slabs(int group) const { return DivideUp(Rows(group), kRowsPerSlab); }
  __device__ int FirstSlab(int group) const {
    return group == 0 ? 0
                      : DivideUp(first_rows, kRowsPerSlab) +
                            (group - 1) * DivideUp(group_rows, kRowsPerSlab);
  }
  __device__ int Steps(int group) const { return DivideUp(Rows(group), kRowsPerStep); }
  __device__ int FirstStep(int group) const {
    return group == 0 ? 0
                      : DivideUp(first_rows, kRowsPerStep) +
                            (group - 1) * DivideUp(group_rows, kRowsPerStep);
  }
};

/// What a thread block multiplies.
template <WeightType kType>
struct MmaOperands {
  ChunkCut<kType> cut;
  const uint4* weights;   // the chunk's first step of the first block
  std::int64_t block;     // uint4s from one block to the next
  int blocks;             // that there are from the first one on
  const float* scales;    // of the chunk's first group, the first block's first column
  int scales_stride;      // from group to group
  const uint2* x;         // the chunk's first slab of the first row
  std::int64_t x_stride;  // from row to row
  int rows;               // 1 at least
};

__device__ __forceinline__ std::uint32_t WordOf(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

/// The words of x that a lane feeds to the MMAs of one slab, [MMA][operand word], each with its
/// high and its low plane.
template <WeightType kType>
struct SlabOfX {
  static constexpr int kWords = 2 * MmaTraits<kType>::kMmas;
  uint2 words[kWords];

  /// uint2s of a slab in memory.
  static constexpr int kLength = 4 * kWords;

  __device__ __forceinline__ static void Cut(const uint4& both, uint2& first, uint2& second) {
    first = {both.x, both.y};
    second = {both.z, both.w};
  }
  /// From the slab's beginning in memory.
  __device__ __forceinline__ void Load(const uint2* slab, int t) {
    if constexpr (kType == WeightType::kInt4) {
      // A step of weights holds k 0 … 3 and k 4 … 7, two steps of x.
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Cut(*reinterpret_cast<const uint4*>(slab + 8 * m + 2 * t), words[2 * m], words[2 * m + 1]);
      }
    } else {
      words[0] = slab[t];
      words[1] = slab[t + 4];
    }
  }
};

/// A warp's weights of one slab: [half][step t, step t + 4].
template <int kHalves>
struct SlabOfWeights {
  uint4 words[kHalves][2];
};

/// A warp's sums over a run: kHalves · 32 columns and kTiles · 8 rows of x. Element e of
/// [half][i][tile] is column 4g + 2i + e / 2 of the half and row 8 · tile + 2t + e % 2.
template <WeightType kType, int kHalves, int kTiles>
struct RunSums {
  using Traits = MmaTraits<kType>;
  typename Traits::Sum values[Traits::kSums][kHalves][2][kTiles][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int p = 0; p < Traits::kSums; ++p) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) values[p][h][i][n][e] = 0;
          }
        }
      }
    }
  }

  /// x(n) is the slab's part of rows 8n … 8n + 7.
  template <class X>
  __device__ __forceinline__ void Add(const SlabOfWeights<kHalves>& weights, const X& x) {
#pragma unroll
    for (int m = 0; m < Traits::kMmas; ++m) {
      std::uint32_t a[kHalves][2][4];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            if constexpr (kType == WeightType::kInt4) {
              // A half of a byte, w + 8, in the upper half is 16 · w but for its sign.
              const std::uint32_t word = WordOf(weights.words[h][m], 2 * i + row);
              a[h][i][row] = ((word << 4) & 0xf0f0f0f0u) ^ 0x80808080u;
              a[h][i][row + 2] = (word & 0xf0f0f0f0u) ^ 0x80808080u;
            } else {
              constexpr std::uint32_t kSigns = kType == WeightType::kInt8 ? 0x80808080u : 0;
              a[h][i][row] = WordOf(weights.words[h][0], 2 * i + row) ^ kSigns;
              a[h][i][row + 2] = WordOf(weights.words[h][1], 2 * i + row) ^ kSigns;
            }
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const SlabOfX<kType> words = x(n);
        const std::uint32_t high[2] = {words.words[2 * m].x, words.words[2 * m + 1].x};
        const std::uint32_t low[2] = {words.words[2 * m].y, words.words[2 * m + 1].y};
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if constexpr (kType == WeightType::kBf16) {
              MmaBf16(values[0][h][i][n], a[h][i], high);
              MmaBf16(values[0][h][i][n], a[h][i], low);
            } else {
              MmaInt8(values[0][h][i][n], a[h][i], high);
              MmaInt8(values[1][h][i][n], a[h][i], low);
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ typename Traits::Sum Value(int h, int i, int n, int e) const {
    if constexpr (kType == WeightType::kBf16) {
      return values[0][h][i][n][e];
    } else {
      const std::int32_t sum = values[0][h][i][n][e] * 128 + values[1][h][i][n][e];
      return kType == WeightType::kInt4 ? sum >> 4 : sum;
    }
  }
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_MMA_OPERANDS_H_

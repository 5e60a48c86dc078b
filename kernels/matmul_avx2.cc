// Compiled with -mavx2 -mfma, and so without any header that has inline functions.
#include <immintrin.h>

#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kColumns = 64;
constexpr std::int64_t kStepBytes = kColumns * 4;

/// Fetches the next panel's weights into L2, in order of addresses, while this panel is multiplied:
/// the panel's passes over column slices each take their share of the lines.
class Prefetcher {
 public:
  explicit Prefetcher(const std::uint8_t* next) : next_(next) {}
  void Fetch() {
    _mm_prefetch(reinterpret_cast<const char*>(next_), _MM_HINT_T1);
    next_ += 64;
  }

 private:
  const std::uint8_t* next_;
};

std::uint32_t LargestMagnitude(const float* x, std::int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
  }
  if (i < count) {
    alignas(32) float tail[8] = {};
    for (std::int64_t j = 0; i + j < count; ++j) tail[j] = x[i + j];
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(tail));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
  }
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  std::uint32_t result = 0;
  for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

__m256i QuantiseEight(__m256 x, __m256 scale) {
  const __m256 limit = _mm256_set1_ps(kLargestActivation);
  const __m256 ratio = _mm256_div_ps(x, scale);
  const __m256 clamped =
      _mm256_max_ps(_mm256_min_ps(ratio, limit), _mm256_sub_ps(_mm256_setzero_ps(), limit));
  return _mm256_cvtps_epi32(clamped);  // to nearest, ties to even
}

__m128i Narrow(__m256i a) {
  return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}

std::int32_t Quantise(const float* x, std::int64_t count, float scale, std::int16_t* a) {
  const __m256 scales = _mm256_set1_ps(scale);
  __m256i sums = _mm256_setzero_si256();
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i values = QuantiseEight(_mm256_loadu_ps(x + i), scales);
    sums = _mm256_add_epi32(sums, values);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a + i), Narrow(values));
  }
  if (i < count) {
    alignas(32) float tail[8] = {};
    alignas(16) std::int16_t narrow[8];
    for (std::int64_t j = 0; i + j < count; ++j) tail[j] = x[i + j];
    const __m256i values = QuantiseEight(_mm256_load_ps(tail), scales);
    sums = _mm256_add_epi32(sums, values);
    _mm_store_si128(reinterpret_cast<__m128i*>(narrow), Narrow(values));
    for (std::int64_t j = 0; i + j < count; ++j) a[i + j] = narrow[j];
  }
  alignas(32) std::int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
  std::int32_t sum = 0;
  for (const std::int32_t lane : lanes) sum += lane;
  return sum;
}

// The int8 tiles. A vector holds 4 columns × 4 k of weights, widened to 16 bits; vpmaddwd leaves
// two sums per column, which are added at the panel's end. Accumulators are named variables,
// because g++ 12 keeps arrays of them on the stack.

__m256i Widen(const std::uint8_t* weights) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
}

__m256i Broadcast(const std::int16_t* x) {
  return _mm256_castpd_si256(_mm256_broadcast_sd(reinterpret_cast<const double*>(x)));
}

/// sum + weights · x. Assembly, because from intrinsics g++ 12 makes all products of a loop first
/// and then has no registers left for the sums.
__m256i MultiplyAdd(__m256i sum, __m256i weights, __m256i x) {
  __m256i products;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
      : "+x"(sum), "=&x"(products)
      : "x"(weights), "x"(x));
  return sum;
}

/// Adds the flush of eight columns: `low` has the pairs of the first four.
void Flush(__m256i low, __m256i high, std::int32_t correction, float* sums) {
  // hadd leaves columns 0 1 4 5 | 2 3 6 7.
  const __m256i dots = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
  const __m256 flush = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, _mm256_set1_epi32(correction)));
  _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), flush));
}

/// Calls multiply(weights, x) for the panel's steps, two at a time: one by one costs a fifth of the
/// speed. Fetches kLines lines for every two steps.
template <int kLines, class Multiply>
[[gnu::always_inline]] inline void ForEachStep(const Int8Panel& panel, std::int64_t row,
                                               std::int64_t column, Prefetcher prefetch,
                                               const Multiply& multiply) {
  const std::uint8_t* w = panel.weights + column * 4;
  const std::int16_t* x = panel.x + row * panel.x_stride;
  for (std::int64_t pair = panel.steps / 2; pair > 0; --pair) {
    for (int line = 0; line < kLines; ++line) prefetch.Fetch();
    multiply(w, x);
    multiply(w + kStepBytes, x + 4);
    w += 2 * kStepBytes;
    x += 8;
  }
  if (panel.steps % 2 == 1) multiply(w, x);
}

/// 1 row × 32 columns.
void Int8Row1(const Int8Panel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0,
          a7 = a0;
  const auto multiply = [&](const std::uint8_t* w, const std::int16_t* x)
      __attribute__((always_inline)) {
    const __m256i xa = Broadcast(x);
    a0 = MultiplyAdd(a0, Widen(w), xa);
    a1 = MultiplyAdd(a1, Widen(w + 16), xa);
    a2 = MultiplyAdd(a2, Widen(w + 32), xa);
    a3 = MultiplyAdd(a3, Widen(w + 48), xa);
    a4 = MultiplyAdd(a4, Widen(w + 64), xa);
    a5 = MultiplyAdd(a5, Widen(w + 80), xa);
    a6 = MultiplyAdd(a6, Widen(w + 96), xa);
    a7 = MultiplyAdd(a7, Widen(w + 112), xa);
  };
  ForEachStep<4>(panel, row, column, prefetch, multiply);
  const std::int32_t correction = panel.corrections[row * panel.corrections_stride];
  float* sums = panel.sums + row * kColumns + column;
  Flush(a0, a1, correction, sums);
  Flush(a2, a3, correction, sums + 8);
  Flush(a4, a5, correction, sums + 16);
  Flush(a6, a7, correction, sums + 24);
}

/// 2 rows × 16 columns.
void Int8Rows2(const Int8Panel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  const std::int64_t stride = panel.x_stride;
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0,
          b3 = a0;
  const auto multiply = [&](const std::uint8_t* w, const std::int16_t* x)
      __attribute__((always_inline)) {
    const __m256i xa = Broadcast(x);
    const __m256i xb = Broadcast(x + stride);
    const __m256i w0 = Widen(w);
    a0 = MultiplyAdd(a0, w0, xa);
    b0 = MultiplyAdd(b0, w0, xb);
    const __m256i w1 = Widen(w + 16);
    a1 = MultiplyAdd(a1, w1, xa);
    b1 = MultiplyAdd(b1, w1, xb);
    const __m256i w2 = Widen(w + 32);
    a2 = MultiplyAdd(a2, w2, xa);
    b2 = MultiplyAdd(b2, w2, xb);
    const __m256i w3 = Widen(w + 48);
    a3 = MultiplyAdd(a3, w3, xa);
    b3 = MultiplyAdd(b3, w3, xb);
  };
  ForEachStep<2>(panel, row, column, prefetch, multiply);
  const std::int32_t* corrections = panel.corrections + row * panel.corrections_stride;
  float* sums = panel.sums + row * kColumns + column;
  Flush(a0, a1, corrections[0], sums);
  Flush(a2, a3, corrections[0], sums + 8);
  Flush(b0, b1, corrections[panel.corrections_stride], sums + kColumns);
  Flush(b2, b3, corrections[panel.corrections_stride], sums + kColumns + 8);
}

/// 3 rows × 8 columns.
void Int8Rows3(const Int8Panel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  const std::int64_t stride = panel.x_stride;
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0;
  const auto multiply = [&](const std::uint8_t* w, const std::int16_t* x)
      __attribute__((always_inline)) {
    const __m256i w0 = Widen(w);
    const __m256i w1 = Widen(w + 16);
    const __m256i xa = Broadcast(x);
    a0 = MultiplyAdd(a0, w0, xa);
    a1 = MultiplyAdd(a1, w1, xa);
    const __m256i xb = Broadcast(x + stride);
    b0 = MultiplyAdd(b0, w0, xb);
    b1 = MultiplyAdd(b1, w1, xb);
    const __m256i xc = Broadcast(x + 2 * stride);
    c0 = MultiplyAdd(c0, w0, xc);
    c1 = MultiplyAdd(c1, w1, xc);
  };
  ForEachStep<1>(panel, row, column, prefetch, multiply);
  const std::int32_t* corrections = panel.corrections + row * panel.corrections_stride;
  float* sums = panel.sums + row * kColumns + column;
  Flush(a0, a1, corrections[0], sums);
  Flush(b0, b1, corrections[panel.corrections_stride], sums + kColumns);
  Flush(c0, c1, corrections[2 * panel.corrections_stride], sums + 2 * kColumns);
}

/// 4 rows × 8 columns.
void Int8Rows4(const Int8Panel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  const std::int64_t stride = panel.x_stride;
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0,
          d1 = a0;
  const auto multiply = [&](const std::uint8_t* w, const std::int16_t* x)
      __attribute__((always_inline)) {
    const __m256i w0 = Widen(w);
    const __m256i w1 = Widen(w + 16);
    const __m256i xa = Broadcast(x);
    a0 = MultiplyAdd(a0, w0, xa);
    a1 = MultiplyAdd(a1, w1, xa);
    const __m256i xb = Broadcast(x + stride);
    b0 = MultiplyAdd(b0, w0, xb);
    b1 = MultiplyAdd(b1, w1, xb);
    const __m256i xc = Broadcast(x + 2 * stride);
    c0 = MultiplyAdd(c0, w0, xc);
    c1 = MultiplyAdd(c1, w1, xc);
    const __m256i xd = Broadcast(x + 3 * stride);
    d0 = MultiplyAdd(d0, w0, xd);
    d1 = MultiplyAdd(d1, w1, xd);
  };
  ForEachStep<1>(panel, row, column, prefetch, multiply);
  const std::int32_t* corrections = panel.corrections + row * panel.corrections_stride;
  float* sums = panel.sums + row * kColumns + column;
  Flush(a0, a1, corrections[0], sums);
  Flush(b0, b1, corrections[panel.corrections_stride], sums + kColumns);
  Flush(c0, c1, corrections[2 * panel.corrections_stride], sums + 2 * kColumns);
  Flush(d0, d1, corrections[3 * panel.corrections_stride], sums + 3 * kColumns);
}

void Int8(const Int8Panel& panel) {
  for (std::int64_t row = 0; row < panel.rows;) {
    // Later rows find the next panel on its way already: they touch their own one again.
    const std::uint8_t* next = row == 0 ? panel.next : panel.weights;
    const std::int64_t rows = panel.rows - row < 4 ? panel.rows - row : 4;
    const std::int64_t slice = rows == 1 ? 32 : rows == 2 ? 16 : 8;
    for (std::int64_t column = 0; column < panel.columns; column += slice) {
      const Prefetcher prefetch(next + column * 4 * panel.steps);
      switch (rows) {
        case 1:
          Int8Row1(panel, row, column, prefetch);
          break;
        case 2:
          Int8Rows2(panel, row, column, prefetch);
          break;
        case 3:
          Int8Rows3(panel, row, column, prefetch);
          break;
        default:
          Int8Rows4(panel, row, column, prefetch);
      }
    }
    row += rows;
  }
}

// The float tiles: kRows rows × kVectors · 8 columns, one accumulator each, k ascending.

__m256 BroadcastFloat(const float* x) { return _mm256_broadcast_ss(x); }

template <int kRows, int kVectors>
struct FloatTile {
  __m256 sums[kRows][kVectors];

  void Load(const float* from) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm256_loadu_ps(from + r * kColumns + v * 8);
    }
  }
  void Store(float* to) const {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(to + r * kColumns + v * 8, sums[r][v]);
    }
  }
};

template <int kRows, int kVectors>
void F32Tile(const FloatPanel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  const auto* w = reinterpret_cast<const float*>(panel.weights) + column;
  const std::int64_t stride = panel.x_stride;
  const float* x = panel.x + row * stride;
  FloatTile<kRows, kVectors> tile;
  tile.Load(panel.sums + row * kColumns + column);
  for (std::int64_t k = 0; k < panel.k; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v += 2) prefetch.Fetch();
    __m256 weights[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) weights[v] = _mm256_loadu_ps(w + v * 8);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 xs = BroadcastFloat(x + r * stride);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        tile.sums[r][v] = _mm256_fmadd_ps(xs, weights[v], tile.sums[r][v]);
      }
    }
    w += kColumns;
    x += 1;
  }
  tile.Store(panel.sums + row * kColumns + column);
}

/// A 32-bit lane holds a column's k in its low half and k + 1 in its high half; a bf16 is the upper
/// half of the float of the same value.
__m256 LowerBf16(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }

__m256 UpperBf16(__m256i pairs) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

template <int kRows, int kVectors>
void Bf16Tile(const FloatPanel& panel, std::int64_t row, std::int64_t column, Prefetcher prefetch) {
  const std::uint8_t* w = panel.weights + column * 4;
  const std::int64_t stride = panel.x_stride;
  const float* x = panel.x + row * stride;
  constexpr int kTogether = kRows > 2 ? 2 : 1;
  FloatTile<kRows, kVectors> tile;
  tile.Load(panel.sums + row * kColumns + column);
  for (std::int64_t k = 0; k + 1 < panel.k; k += 2) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v += 2) prefetch.Fetch();
      // kTogether vectors at a time: g++ 12 runs out of registers when it has to widen more.
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v += kTogether) {
      __m256 lower[kTogether];
      __m256 upper[kTogether];
#pragma GCC unroll 2
      for (int i = 0; i < kTogether; ++i) {
        const __m256i pairs =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + (v + i) * 32));
        lower[i] = LowerBf16(pairs);
        upper[i] = UpperBf16(pairs);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256 first = BroadcastFloat(x + r * stride);
        const __m256 second = BroadcastFloat(x + r * stride + 1);
#pragma GCC unroll 2
        for (int i = 0; i < kTogether; ++i) {
          tile.sums[r][v + i] = _mm256_fmadd_ps(first, lower[i], tile.sums[r][v + i]);
          tile.sums[r][v + i] = _mm256_fmadd_ps(second, upper[i], tile.sums[r][v + i]);
        }
      }
    }
    w += kStepBytes;
    x += 2;
  }
  if (panel.k % 2 == 1) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m256 lower =
          LowerBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + v * 32)));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        tile.sums[r][v] = _mm256_fmadd_ps(BroadcastFloat(x + r * stride), lower, tile.sums[r][v]);
      }
    }
  }
  tile.Store(panel.sums + row * kColumns + column);
}

using FloatTileFunction = void (*)(const FloatPanel&, std::int64_t, std::int64_t, Prefetcher);

/// tiles[r - 1] takes r rows: one 64 columns, two 32, three and four 16.
void RunFloatTiles(const FloatPanel& panel, std::int64_t steps,
                   const FloatTileFunction (&tiles)[4]) {
  for (std::int64_t row = 0; row < panel.rows;) {
    const std::uint8_t* next = row == 0 ? panel.next : panel.weights;
    const std::int64_t rows = panel.rows - row < 4 ? panel.rows - row : 4;
    const std::int64_t slice = rows == 1 ? 64 : rows == 2 ? 32 : 16;
    for (std::int64_t column = 0; column < panel.columns; column += slice) {
      tiles[rows - 1](panel, row, column, Prefetcher(next + column * 4 * steps));
    }
    row += rows;
  }
}

void F32(const FloatPanel& panel) {
  RunFloatTiles(panel, panel.k, {F32Tile<1, 8>, F32Tile<2, 4>, F32Tile<3, 2>, F32Tile<4, 2>});
}

void Bf16(const FloatPanel& panel) {
  RunFloatTiles(panel, panel.k / 2,
                {Bf16Tile<1, 8>, Bf16Tile<2, 4>, Bf16Tile<3, 2>, Bf16Tile<4, 2>});
}

}  // namespace

const MatmulTiles kAvx2MatmulTiles = {.largest_magnitude = LargestMagnitude,
                                      .quantise = Quantise,
                                      .int8 = Int8,
                                      .bf16 = Bf16,
                                      .f32 = F32};

}  // namespace jubal

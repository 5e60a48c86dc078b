// Compiled with -mavx2 -mfma, and so without any header that has inline functions.
#include <immintrin.h>

#include "kernels/matmul_passes.h"
#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kColumns = 64;
constexpr std::int64_t kStepBytes = kColumns * 4;

/// Fetches a part of the next panel's weights, in order of addresses, while this panel is
/// multiplied: each pass over a slice of columns and a few rows takes its share of the lines, so
/// that memory is busy all the time.
class Prefetcher {
 public:
  Prefetcher(const std::uint8_t* next, const std::uint8_t* end) : next_(next), end_(end) {}
  void Fetch() {
    _mm_prefetch(reinterpret_cast<const char*>(next_), _MM_HINT_T0);
    next_ = next_ + 64 < end_ ? next_ + 64 : next_;
  }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
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

/// Eight integers as two steps, each in the order k = 0 2 1 3: the even ones meet the even bytes of
/// the weights' words, the odd ones the odd bytes.
__m128i Narrow(__m256i a) {
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  return _mm_shuffle_epi8(
      _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)), order);
}

std::int32_t Quantise(const float* x, std::int64_t count, float scale, std::byte* a) {
  const __m256 scales = _mm256_set1_ps(scale);
  __m256i sums = _mm256_setzero_si256();
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i values = QuantiseEight(_mm256_loadu_ps(x + i), scales);
    sums = _mm256_add_epi32(sums, values);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a + i * 2), Narrow(values));
  }
  if (i < count) {
    alignas(32) float tail[8] = {};
    for (std::int64_t j = 0; i + j < count; ++j) tail[j] = x[i + j];
    const __m256i values = QuantiseEight(_mm256_load_ps(tail), scales);
    sums = _mm256_add_epi32(sums, values);
    if (i + 4 < count) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(a + i * 2), Narrow(values));
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(a + i * 2), Narrow(values));
    }
  }
  alignas(32) std::int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
  std::int32_t sum = 0;
  for (const std::int32_t lane : lanes) sum += lane;
  return sum;
}

// The integer tiles. A vector is 8 columns of a step: its 16-bit lanes hold k = 0, 1 and k = 2, 3
// of a column. Masked, they are the weights of even k, shifted, those of odd k; vpmaddwd with a
// broadcast pair of activations adds two products, so that a 32-bit lane of the sums is a column.
// Two vectors of 8 columns go together. Accumulators are named variables, because g++ 12 keeps
// arrays of them on the stack.

/// Weights of even or odd k of 16 columns.
struct Sixteen {
  __m256i low;
  __m256i high;
};

[[gnu::always_inline]] inline __m256i Load(const std::uint8_t* data) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
}

/// int8: two steps of 4 k, kStepBytes apart.
struct Int8Weights {
  static constexpr std::int64_t kPairBytes = 2 * kStepBytes;

  template <int kQuarter>  // k = 0 2, 1 3 of the first step, 0 2, 1 3 of the second
  [[gnu::always_inline]] static inline __m256i Get(const std::uint8_t* w) {
    const __m256i both = Load(w + kQuarter / 2 * kStepBytes);
    return kQuarter % 2 == 0 ? _mm256_and_si256(both, _mm256_set1_epi16(0xff))
                             : _mm256_srli_epi16(both, 8);
  }
};

/// int4: the two steps are the low and the high halves of the same bytes.
struct Int4Weights {
  static constexpr std::int64_t kPairBytes = kStepBytes;

  template <int kQuarter>
  [[gnu::always_inline]] static inline __m256i Get(const std::uint8_t* w) {
    constexpr int kShift = kQuarter == 0 ? 0 : kQuarter == 1 ? 8 : kQuarter == 2 ? 4 : 12;
    const __m256i shifted = _mm256_srli_epi16(Load(w), kShift);
    return kQuarter == 3 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(0xf));
  }
};

/// Two consecutive activations, for all columns.
template <int kQuarter>
[[gnu::always_inline]] inline __m256i Broadcast(const std::byte* x) {
  return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(x + 4 * kQuarter)));
}

/// low += w.low · x, high += w.high · x. Assembly, because from intrinsics g++ 12 makes all
/// products of a loop first and then has no registers left for the sums; two products before two
/// sums, since the other order is slower on Zen 3.
[[gnu::always_inline]] inline void MultiplyAdd(__m256i& low, __m256i& high, Sixteen w, __m256i x) {
  __m256i first;
  __m256i second;
  asm("vpmaddwd %4, %6, %2\n\tvpmaddwd %5, %6, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
      : "+x"(low), "+x"(high), "=&x"(first), "=&x"(second)
      : "x"(w.low), "x"(w.high), "x"(x));
}

/// Adds the flush of a group's dot products to sums: times the group's scale, if there are scales.
struct Flush {
  std::int32_t correction;
  const float* scales;  // of the columns; null for int8

  [[gnu::always_inline]] inline void Eight(__m256i dots, float* sums, std::int64_t column) const {
    __m256 flush = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, _mm256_set1_epi32(correction)));
    if (scales != nullptr) flush = _mm256_mul_ps(flush, _mm256_loadu_ps(scales + column));
    _mm256_storeu_ps(sums + column, _mm256_add_ps(_mm256_loadu_ps(sums + column), flush));
  }
  [[gnu::always_inline]] inline void Sixteen(__m256i low, __m256i high, float* sums,
                                             std::int64_t column) const {
    Eight(low, sums, column);
    Eight(high, sums, column + 8);
  }
};

/// One group of a panel, and where its tile is.
struct Tile {
  const std::uint8_t* weights;  // of the tile's first column
  std::int64_t steps;
  const std::byte* x;  // of the tile's first row
  std::int64_t x_stride;
  Prefetcher prefetch;
};

/// Where a tile reads its rows' activations. The empty assembly keeps g++ from replacing the few
/// pointers by one for every place that reads, more than there are registers.
template <int kRows>
struct RowPointers;

template <>
struct RowPointers<1> {
  explicit RowPointers(const Tile& tile) : x0(tile.x) {}
  [[gnu::always_inline]] inline void Advance() {
    x0 += 2 * kActivationStepBytes;
    asm("" : "+r"(x0));
  }
  const std::byte* x0;
};

template <>
struct RowPointers<2> {
  explicit RowPointers(const Tile& tile) : x0(tile.x), x1(x0 + tile.x_stride) {}
  [[gnu::always_inline]] inline void Advance() {
    x0 += 2 * kActivationStepBytes;
    x1 += 2 * kActivationStepBytes;
    asm("" : "+r"(x0), "+r"(x1));
  }
  const std::byte *x0, *x1;
};

template <>
struct RowPointers<3> {
  explicit RowPointers(const Tile& tile)
      : x0(tile.x), x1(x0 + tile.x_stride), x2(x1 + tile.x_stride) {}
  [[gnu::always_inline]] inline void Advance() {
    x0 += 2 * kActivationStepBytes;
    x1 += 2 * kActivationStepBytes;
    x2 += 2 * kActivationStepBytes;
    asm("" : "+r"(x0), "+r"(x1), "+r"(x2));
  }
  const std::byte *x0, *x1, *x2;
};

template <>
struct RowPointers<4> {
  explicit RowPointers(const Tile& tile)
      : x0(tile.x), x1(x0 + tile.x_stride), x2(x1 + tile.x_stride), x3(x2 + tile.x_stride) {}
  [[gnu::always_inline]] inline void Advance() {
    x0 += 2 * kActivationStepBytes;
    x1 += 2 * kActivationStepBytes;
    x2 += 2 * kActivationStepBytes;
    x3 += 2 * kActivationStepBytes;
    asm("" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3));
  }
  const std::byte *x0, *x1, *x2, *x3;
};

/// Calls multiply<q>(w) for the quarters q of the group's pairs of steps: the weights of quarter q
/// are Weights::Get<q>(w), its activations lie 4q bytes beyond `rows`. Fetches kLines lines for
/// every two steps.
template <class Weights, int kLines, class Rows, class Multiply>
[[gnu::always_inline]] inline void ForEachQuarter(Tile& tile, Rows& rows,
                                                  const Multiply& multiply) {
  const std::uint8_t* w = tile.weights;
  for (std::int64_t pair = tile.steps / 2; pair > 0; --pair) {
    for (int line = 0; line < kLines; ++line) tile.prefetch.Fetch();
    multiply.template operator()<0>(w);
    multiply.template operator()<1>(w);
    multiply.template operator()<2>(w);
    multiply.template operator()<3>(w);
    w += Weights::kPairBytes;
    rows.Advance();
  }
  if (tile.steps % 2 == 1) {
    multiply.template operator()<0>(w);
    multiply.template operator()<1>(w);
  }
}

template <class Weights, int kQuarter>
[[gnu::always_inline]] inline Sixteen GetSixteen(const std::uint8_t* w) {
  return {Weights::template Get<kQuarter>(w), Weights::template Get<kQuarter>(w + 32)};
}

/// 1 row × 64 columns.
template <class Weights, int kLines>
void Rows1(Tile tile, const Flush* flush, float* sums) {
  RowPointers<1> rows(tile);
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0,
          a7 = a0;
  const auto multiply = [&]<int kQuarter>(const std::uint8_t* w) __attribute__((always_inline)) {
    const __m256i xa = Broadcast<kQuarter>(rows.x0);
    MultiplyAdd(a0, a1, GetSixteen<Weights, kQuarter>(w), xa);
    MultiplyAdd(a2, a3, GetSixteen<Weights, kQuarter>(w + 64), xa);
    MultiplyAdd(a4, a5, GetSixteen<Weights, kQuarter>(w + 128), xa);
    MultiplyAdd(a6, a7, GetSixteen<Weights, kQuarter>(w + 192), xa);
  };
  ForEachQuarter<Weights, kLines>(tile, rows, multiply);
  flush[0].Sixteen(a0, a1, sums, 0);
  flush[0].Sixteen(a2, a3, sums, 16);
  flush[0].Sixteen(a4, a5, sums, 32);
  flush[0].Sixteen(a6, a7, sums, 48);
}

/// 2 rows × 32 columns.
template <class Weights, int kLines>
void Rows2(Tile tile, const Flush* flush, float* sums) {
  RowPointers<2> rows(tile);
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0,
          b3 = a0;
  const auto multiply = [&]<int kQuarter>(const std::uint8_t* w) __attribute__((always_inline)) {
    const __m256i xa = Broadcast<kQuarter>(rows.x0);
    const __m256i xb = Broadcast<kQuarter>(rows.x1);
    const Sixteen first = GetSixteen<Weights, kQuarter>(w);
    MultiplyAdd(a0, a1, first, xa);
    MultiplyAdd(b0, b1, first, xb);
    const Sixteen second = GetSixteen<Weights, kQuarter>(w + 64);
    MultiplyAdd(a2, a3, second, xa);
    MultiplyAdd(b2, b3, second, xb);
  };
  ForEachQuarter<Weights, kLines>(tile, rows, multiply);
  flush[0].Sixteen(a0, a1, sums, 0);
  flush[0].Sixteen(a2, a3, sums, 16);
  flush[1].Sixteen(b0, b1, sums + kColumns, 0);
  flush[1].Sixteen(b2, b3, sums + kColumns, 16);
}

/// 3 rows × 16 columns.
template <class Weights, int kLines>
void Rows3(Tile tile, const Flush* flush, float* sums) {
  RowPointers<3> rows(tile);
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0;
  const auto multiply = [&]<int kQuarter>(const std::uint8_t* w) __attribute__((always_inline)) {
    const Sixteen weights = GetSixteen<Weights, kQuarter>(w);
    MultiplyAdd(a0, a1, weights, Broadcast<kQuarter>(rows.x0));
    MultiplyAdd(b0, b1, weights, Broadcast<kQuarter>(rows.x1));
    MultiplyAdd(c0, c1, weights, Broadcast<kQuarter>(rows.x2));
  };
  ForEachQuarter<Weights, kLines>(tile, rows, multiply);
  flush[0].Sixteen(a0, a1, sums, 0);
  flush[1].Sixteen(b0, b1, sums + kColumns, 0);
  flush[2].Sixteen(c0, c1, sums + 2 * kColumns, 0);
}

/// 4 rows × 16 columns.
template <class Weights, int kLines>
void Rows4(Tile tile, const Flush* flush, float* sums) {
  RowPointers<4> rows(tile);
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0,
          d1 = a0;
  const auto multiply = [&]<int kQuarter>(const std::uint8_t* w) __attribute__((always_inline)) {
    const Sixteen weights = GetSixteen<Weights, kQuarter>(w);
    MultiplyAdd(a0, a1, weights, Broadcast<kQuarter>(rows.x0));
    MultiplyAdd(b0, b1, weights, Broadcast<kQuarter>(rows.x1));
    MultiplyAdd(c0, c1, weights, Broadcast<kQuarter>(rows.x2));
    MultiplyAdd(d0, d1, weights, Broadcast<kQuarter>(rows.x3));
  };
  ForEachQuarter<Weights, kLines>(tile, rows, multiply);
  flush[0].Sixteen(a0, a1, sums, 0);
  flush[1].Sixteen(b0, b1, sums + kColumns, 0);
  flush[2].Sixteen(c0, c1, sums + 2 * kColumns, 0);
  flush[3].Sixteen(d0, d1, sums + 3 * kColumns, 0);
}

template <class Weights>
void Integers(const IntegerPanel& panel, std::int32_t offset) {
  const std::int64_t group_bytes =
      panel.group_steps / 2 * Weights::kPairBytes + panel.group_steps % 2 * kStepBytes;
  const std::int64_t groups = panel.steps / panel.group_steps;
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::uint8_t* const weights = panel.weights + group * group_bytes;
    const std::byte* const x = panel.x + group * panel.group_steps * kActivationStepBytes;
    const float* const scales =
        panel.scales == nullptr ? nullptr : panel.scales + group * panel.scales_stride;
    // As many rows in each tile as in the others: 9 are three times 3.
    const std::int64_t tiles = (panel.rows + 3) / 4;
    const std::uint8_t* const next = panel.next + group * group_bytes;
    const auto run = [&](std::int64_t i, std::int64_t row, std::int64_t rows, std::int64_t columns,
                         auto function) __attribute__((always_inline)) {
      for (std::int64_t column = 0; column < panel.columns; column += columns) {
        const std::uint8_t* const fetched =
            next + (i * kColumns + column) * group_bytes / kColumns / tiles;
        const std::int64_t share = group_bytes * columns / kColumns / tiles;
        Flush flush[4];
        for (std::int64_t r = 0; r < rows; ++r) {
          flush[r] = {offset * panel.sums_of_x[(row + r) * panel.sums_of_x_stride + group],
                      scales == nullptr ? nullptr : scales + column};
        }
        function(Tile{weights + column * 4, panel.group_steps, x + row * panel.x_stride,
                      panel.x_stride, Prefetcher(fetched, fetched + share)},
                 flush, panel.sums + row * kColumns + column);
      }
    };
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t row = panel.rows * i / tiles;
      switch (panel.rows * (i + 1) / tiles - row) {
        case 1:
          run(i, row, 1, 64, Rows1<Weights, Weights::kPairBytes / 64>);
          break;
        case 2:
          run(i, row, 2, 32, Rows2<Weights, Weights::kPairBytes / 128>);
          break;
        case 3:
          run(i, row, 3, 16, Rows3<Weights, Weights::kPairBytes / 256>);
          break;
        default:
          run(i, row, 4, 16, Rows4<Weights, Weights::kPairBytes / 256>);
      }
    }
  }
}

void Int8(const IntegerPanel& panel) { Integers<Int8Weights>(panel, kInt8Offset); }
void Int4(const IntegerPanel& panel) { Integers<Int4Weights>(panel, kInt4Offset); }

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
  const std::int64_t groups = (panel.rows + 3) / 4;
  const std::int64_t share = steps * kStepBytes / groups;
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t row = panel.rows * i / groups;
    const std::int64_t rows = panel.rows * (i + 1) / groups - row;
    const std::int64_t slice = rows == 1 ? 64 : rows == 2 ? 32 : 16;
    for (std::int64_t column = 0; column < panel.columns; column += slice) {
      const std::uint8_t* next = panel.next + i * share + column * share / kColumns;
      tiles[rows - 1](panel, row, column, Prefetcher(next, next + share * slice / kColumns));
    }
  }
}

void F32(const FloatPanel& panel) {
  RunFloatTiles(panel, panel.k, {F32Tile<1, 8>, F32Tile<2, 4>, F32Tile<3, 2>, F32Tile<4, 2>});
}

void Bf16(const FloatPanel& panel) {
  RunFloatTiles(panel, panel.k / 2,
                {Bf16Tile<1, 8>, Bf16Tile<2, 4>, Bf16Tile<3, 2>, Bf16Tile<4, 2>});
}

std::int64_t IntegerPeak(std::int64_t repetitions) {
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0,
          a7 = a0, a8 = a0, a9 = a0;
  const Sixteen weights = {_mm256_set1_epi16(3), _mm256_set1_epi16(5)};
  const __m256i x = _mm256_set1_epi16(7);
  for (std::int64_t i = 0; i < repetitions; ++i) {
    MultiplyAdd(a0, a1, weights, x);
    MultiplyAdd(a2, a3, weights, x);
    MultiplyAdd(a4, a5, weights, x);
    MultiplyAdd(a6, a7, weights, x);
    MultiplyAdd(a8, a9, weights, x);
  }
  asm volatile("" ::"x"(a0), "x"(a1), "x"(a2), "x"(a3), "x"(a4), "x"(a5), "x"(a6), "x"(a7));
  asm volatile("" ::"x"(a8), "x"(a9));
  return repetitions * 10 * 16 * 2;
}

std::int64_t FloatPeak(std::int64_t repetitions) {
  __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0,
         a8 = a0, a9 = a0;
  const __m256 w = _mm256_set1_ps(0.5f);
  const auto multiply_add = [&](__m256 & sum) __attribute__((always_inline)) {
    asm("vfmadd231ps %1, %1, %0" : "+x"(sum) : "x"(w));
  };
  for (std::int64_t i = 0; i < repetitions; ++i) {
    multiply_add(a0);
    multiply_add(a1);
    multiply_add(a2);
    multiply_add(a3);
    multiply_add(a4);
    multiply_add(a5);
    multiply_add(a6);
    multiply_add(a7);
    multiply_add(a8);
    multiply_add(a9);
  }
  asm volatile("" ::"x"(a0), "x"(a1), "x"(a2), "x"(a3), "x"(a4), "x"(a5), "x"(a6), "x"(a7));
  asm volatile("" ::"x"(a8), "x"(a9));
  return repetitions * 10 * 8 * 2;
}

}  // namespace

const MatmulTiles kAvx2MatmulTiles = {.largest_magnitude = LargestMagnitude,
                                      .quantise = Quantise,
                                      .int8 = Int8,
                                      .int4 = Int4,
                                      .bf16 = Bf16,
                                      .f32 = F32,
                                      .add_scaled = AddScaledPass,
                                      .scale = ScalePass,
                                      .add = AddPass,
                                      .gelu_tanh = GeluTanhPass,
                                      .silu = SiluPass,
                                      .integer_peak = IntegerPeak,
                                      .float_peak = FloatPeak};

}  // namespace jubal

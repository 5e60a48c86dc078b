// Compiled for AVX-512, and so without any header that has inline functions.
#include <immintrin.h>

#include "kernels/matmul_passes.h"
#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kColumns = 64;
constexpr std::int64_t kStepBytes = kColumns * 4;

/// 16 floats of which `count` are left; the others are 0 and not read.
__m512 LoadSome(const float* x, std::int64_t count) {
  const auto mask = static_cast<__mmask16>(count < 16 ? (1 << count) - 1 : 0xffff);
  return _mm512_maskz_loadu_ps(mask, x);
}

std::uint32_t LargestMagnitude(const float* x, std::int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < count; i += 16) {
    const __m512i bits = _mm512_castps_si512(LoadSome(x + i, count - i));
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, magnitude));
  }
  alignas(64) std::uint32_t lanes[16];
  _mm512_store_si512(lanes, largest);
  std::uint32_t result = 0;
  for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

/// An activation a becomes the bytes a >> 7, −128 … 127, and a & 127: a step is the upper bytes of
/// its 4 activations, then their lower bytes.
std::int32_t Quantise(const float* x, std::int64_t count, float scale, std::byte* a) {
  const __m512 scales = _mm512_set1_ps(scale);
  const __m512 largest = _mm512_set1_ps(kLargestActivation);
  const __m512 smallest = _mm512_set1_ps(-kLargestActivation);
  __m512i sums = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < count; i += 16) {
    const __m512 ratio = _mm512_div_ps(LoadSome(x + i, count - i), scales);
    const __m512 clamped = _mm512_max_ps(_mm512_min_ps(ratio, largest), smallest);
    const __m512i values = _mm512_cvtps_epi32(clamped);  // to nearest, ties to even
    sums = _mm512_add_epi32(sums, values);
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(values, 7));
    const __m128i low = _mm512_cvtepi32_epi8(_mm512_and_si512(values, _mm512_set1_epi32(127)));
    const __m256i steps =
        _mm256_set_m128i(_mm_unpackhi_epi32(high, low), _mm_unpacklo_epi32(high, low));
    const std::int64_t left = (count - i + 3) / 4;
    const auto mask = static_cast<__mmask8>(left < 4 ? (1 << left) - 1 : 0xf);
    _mm256_mask_storeu_epi64(a + i / 4 * kActivationStepBytes, mask, steps);
  }
  alignas(64) std::int32_t lanes[16];
  _mm512_store_si512(lanes, sums);
  std::int32_t sum = 0;
  for (const std::int32_t lane : lanes) sum += lane;
  return sum;
}

/// Fetches the next panel's weights into L2 while this panel is multiplied: each pass over the
/// panel takes an equal share, so that memory is read at an even pace.
struct Prefetcher {
  const std::uint8_t* next;
  std::int64_t stride;  // bytes for each of a pass's turns: kStepBytes over the number of passes

  template <int kLines>
  [[gnu::always_inline]] inline void Fetch() {
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line * 64), _MM_HINT_T1);
    }
    next += stride;
  }
};

/// Pass number `pass` takes these rows of a panel: nearly equal parts.
struct Pass {
  std::int64_t row;
  std::int64_t rows;
};

[[gnu::always_inline]] inline Pass PassOf(std::int64_t rows, std::int64_t passes,
                                          std::int64_t pass) {
  const std::int64_t begin = rows * pass / passes;
  return {begin, rows * (pass + 1) / passes - begin};
}

// The integer tiles: up to 3 rows × 64 columns. A vector is 16 columns of a step, 4 k of each in a
// 32-bit lane; vpdpbusd multiplies them with 4 broadcast bytes of activations and adds the products
// to the column's sum. Upper and lower bytes of the activations have sums of their own, put
// together in the flush. Sums are named variables, because g++ 12 keeps arrays of them on the
// stack, and all are 32-bit integers modulo 2³².

[[gnu::always_inline]] inline __m512i Load(const std::uint8_t* data) {
  return _mm512_loadu_si512(data);
}

/// 4 bytes of activations, for all columns.
[[gnu::always_inline]] inline __m512i Broadcast(const std::byte* x) {
  std::int32_t bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

/// sums += weights (unsigned) · x (signed). Assembly, because g++ 12 spills with intrinsics.
[[gnu::always_inline]] inline void MultiplyAdd(__m512i& sums, __m512i weights, __m512i x) {
#ifdef JUBAL_EMULATED_AVX512
  sums = _mm512_dpbusd_epi32(sums, weights, x);
#else
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
#endif
}

[[gnu::always_inline]] inline void MultiplyAdd(__m512& sums, __m512 weights, __m512 x) {
#ifdef JUBAL_EMULATED_AVX512
  sums = _mm512_fmadd_ps(weights, x, sums);
#else
  asm("vfmadd231ps %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
#endif
}

/// 4 k of 64 columns.
struct StepWeights {
  __m512i w0, w1, w2, w3;
};

struct Int8Weights {
  static constexpr std::int64_t kSteps = 1;  // in kStepBytes

  template <int>
  [[gnu::always_inline]] static inline __m512i Get(const std::uint8_t* w) {
    return Load(w);
  }
};

struct Int4Weights {
  static constexpr std::int64_t kSteps = 2;  // the low and the high halves of the same bytes

  template <int kStep>
  [[gnu::always_inline]] static inline __m512i Get(const std::uint8_t* w) {
    const __m512i both = Load(w);
    return _mm512_and_si512(kStep == 0 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(0xf));
  }
};

template <class Weights, int kStep>
[[gnu::always_inline]] inline StepWeights GetStep(const std::uint8_t* w) {
  return {Weights::template Get<kStep>(w), Weights::template Get<kStep>(w + 64),
          Weights::template Get<kStep>(w + 128), Weights::template Get<kStep>(w + 192)};
}

/// One row's dot products of a group with 64 columns.
struct RowSums {
  __m512i high0, high1, high2, high3, low0, low1, low2, low3;

  [[gnu::always_inline]] inline void Clear() {
    high0 = high1 = high2 = high3 = low0 = low1 = low2 = low3 = _mm512_setzero_si512();
  }
  /// `x`: the row's step.
  [[gnu::always_inline]] inline void Add(const StepWeights& weights, const std::byte* x) {
    const __m512i high = Broadcast(x);
    MultiplyAdd(high0, weights.w0, high);
    MultiplyAdd(high1, weights.w1, high);
    MultiplyAdd(high2, weights.w2, high);
    MultiplyAdd(high3, weights.w3, high);
    const __m512i low = Broadcast(x + 4);
    MultiplyAdd(low0, weights.w0, low);
    MultiplyAdd(low1, weights.w1, low);
    MultiplyAdd(low2, weights.w2, low);
    MultiplyAdd(low3, weights.w3, low);
  }
  /// Adds the dot products, less `correction`, to sums: times the scales, if there are any.
  [[gnu::always_inline]] inline void Flush(std::int32_t correction, const float* scales,
                                           float* sums) const {
    const __m512i corrections = _mm512_set1_epi32(correction);
    const auto flush = [&](__m512i high, __m512i low, std::int64_t column)
        __attribute__((always_inline)) {
      const __m512i dots = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
      __m512 products = _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, corrections));
      if (scales != nullptr) products = _mm512_mul_ps(products, _mm512_loadu_ps(scales + column));
      _mm512_storeu_ps(sums + column, _mm512_add_ps(_mm512_loadu_ps(sums + column), products));
    };
    flush(high0, low0, 0);
    flush(high1, low1, 16);
    flush(high2, low2, 32);
    flush(high3, low3, 48);
  }
};

/// One group of a panel and the rows that one pass takes.
struct IntegerTile {
  const std::uint8_t* weights;
  std::int64_t turns;  // of kStepBytes
  const std::byte* x;
  std::int64_t x_stride;
  const std::int32_t* sums_of_x;
  std::int64_t sums_of_x_stride;
  const float* scales;
  float* sums;
  Prefetcher prefetch;
};

template <class Weights, int kOffset, int kRows>
void Multiply(const IntegerTile& tile) {
  const std::int64_t stride = tile.x_stride;
  const std::uint8_t* w = tile.weights;
  const std::byte* x = tile.x;
  Prefetcher prefetch = tile.prefetch;
  RowSums a;
  RowSums b;
  RowSums c;
  a.Clear();
  b.Clear();
  c.Clear();
  const auto add = [&](const StepWeights& weights) __attribute__((always_inline)) {
    a.Add(weights, x);
    if constexpr (kRows > 1) b.Add(weights, x + stride);
    if constexpr (kRows > 2) c.Add(weights, x + 2 * stride);
    x += kActivationStepBytes;
  };
  for (std::int64_t turn = tile.turns; turn > 0; --turn) {
    prefetch.Fetch<4>();
    add(GetStep<Weights, 0>(w));
    if constexpr (Weights::kSteps == 2) add(GetStep<Weights, 1>(w));
    w += kStepBytes;
  }
  const auto correction = [&](std::int64_t row) __attribute__((always_inline)) {
    return kOffset * tile.sums_of_x[row * tile.sums_of_x_stride];
  };
  a.Flush(correction(0), tile.scales, tile.sums);
  if constexpr (kRows > 1) b.Flush(correction(1), tile.scales, tile.sums + kColumns);
  if constexpr (kRows > 2) c.Flush(correction(2), tile.scales, tile.sums + 2 * kColumns);
}

template <class Weights, int kOffset>
void Integers(const IntegerPanel& panel) {
  constexpr void (*kMultiply[])(const IntegerTile&) = {
      Multiply<Weights, kOffset, 1>, Multiply<Weights, kOffset, 2>, Multiply<Weights, kOffset, 3>};
  const std::int64_t turns = panel.group_steps / Weights::kSteps;
  const std::int64_t groups = panel.steps / panel.group_steps;
  const std::int64_t passes = (panel.rows + 2) / 3;
  const std::int64_t share = (kStepBytes + passes - 1) / passes;
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t p = 0; p < passes; ++p) {
      const Pass pass = PassOf(panel.rows, passes, p);
      kMultiply[pass.rows - 1](
          {.weights = panel.weights + group * turns * kStepBytes,
           .turns = turns,
           .x = panel.x + pass.row * panel.x_stride +
                group * panel.group_steps * kActivationStepBytes,
           .x_stride = panel.x_stride,
           .sums_of_x = panel.sums_of_x + pass.row * panel.sums_of_x_stride + group,
           .sums_of_x_stride = panel.sums_of_x_stride,
           .scales = panel.scales == nullptr ? nullptr : panel.scales + group * panel.scales_stride,
           .sums = panel.sums + pass.row * kColumns,
           .prefetch = {panel.next + group * turns * kStepBytes + p * turns * share, share}});
    }
  }
}

// The float tiles: kRows rows × kVectors · 16 columns, one accumulator each, k ascending. Not
// vdpbf16ps: it rounds otherwise, and with activations cut into two bf16 it is no faster than FMA.

template <int kRows, int kVectors>
struct FloatSums {
  __m512 sums[kRows][kVectors];

  void Load(const float* from) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = _mm512_loadu_ps(from + r * kColumns + v * 16);
      }
    }
  }
  void Store(float* to) const {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(to + r * kColumns + v * 16, sums[r][v]);
    }
  }
  /// One k. `x`: of the first row, rows `stride` bytes apart; get(v) gives the weights of vector v.
  template <class Get>
  [[gnu::always_inline]] inline void Add(const std::byte* x, std::int64_t stride, const Get& get) {
    __m512 weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = get(v);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512 xs = _mm512_castsi512_ps(Broadcast(x + r * stride));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) MultiplyAdd(sums[r][v], weights[v], xs);
    }
  }
};

template <int kRows, int kVectors>
void F32Tile(const FloatPanel& panel, std::int64_t row, Prefetcher prefetch) {
  const std::uint8_t* w = panel.weights;
  const std::int64_t stride = panel.x_stride * 4;
  const auto* x = reinterpret_cast<const std::byte*>(panel.x) + row * stride;
  const auto get = [&](int v) __attribute__((always_inline)) {
    return _mm512_castsi512_ps(Load(w + v * 64));
  };
  FloatSums<kRows, kVectors> tile;
  tile.Load(panel.sums + row * kColumns);
  for (std::int64_t k = 0; k < panel.k; ++k) {
    prefetch.Fetch<kVectors>();
    tile.Add(x, stride, get);
    w += kStepBytes;
    x += 4;
  }
  tile.Store(panel.sums + row * kColumns);
}

/// A 32-bit lane holds a column's k in its low half and k + 1 in its high half; a bf16 is the upper
/// half of the float of the same value.
template <int kRows, int kVectors>
void Bf16Tile(const FloatPanel& panel, std::int64_t row, Prefetcher prefetch) {
  const std::uint8_t* w = panel.weights;
  const std::int64_t stride = panel.x_stride * 4;
  const auto* x = reinterpret_cast<const std::byte*>(panel.x) + row * stride;
  const auto lower = [&](int v) __attribute__((always_inline)) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(Load(w + v * 64), 16));
  };
  const auto upper = [&](int v) __attribute__((always_inline)) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(Load(w + v * 64), mask));
  };
  FloatSums<kRows, kVectors> tile;
  tile.Load(panel.sums + row * kColumns);
  for (std::int64_t k = 0; k + 1 < panel.k; k += 2) {
    prefetch.Fetch<kVectors>();
    tile.Add(x, stride, lower);
    tile.Add(x + 4, stride, upper);
    w += kStepBytes;
    x += 8;
  }
  if (panel.k % 2 == 1) tile.Add(x, stride, lower);
  tile.Store(panel.sums + row * kColumns);
}

using FloatTile = void (*)(const FloatPanel&, std::int64_t, Prefetcher);

/// tiles[r - 1] takes r rows.
struct FloatTiles {
  FloatTile narrow[6];  // 16 columns, enough for a router
  FloatTile wide[6];    // 64 columns
};

/// `turns` is how often kStepBytes lie in the panel.
void RunFloatTiles(const FloatPanel& panel, std::int64_t turns, const FloatTiles& tiles) {
  const bool narrow = panel.columns <= 16;
  const std::int64_t passes = (panel.rows + 5) / 6;
  const std::int64_t share = narrow ? kStepBytes : (kStepBytes + passes - 1) / passes;
  for (std::int64_t p = 0; p < passes; ++p) {
    const Pass pass = PassOf(panel.rows, passes, p);
    const std::uint8_t* const next = narrow ? panel.next : panel.next + p * turns * share;
    (narrow ? tiles.narrow : tiles.wide)[pass.rows - 1](panel, pass.row, {next, share});
  }
}

void F32(const FloatPanel& panel) {
  RunFloatTiles(
      panel, panel.k,
      {{F32Tile<1, 1>, F32Tile<2, 1>, F32Tile<3, 1>, F32Tile<4, 1>, F32Tile<5, 1>, F32Tile<6, 1>},
       {F32Tile<1, 4>, F32Tile<2, 4>, F32Tile<3, 4>, F32Tile<4, 4>, F32Tile<5, 4>, F32Tile<6, 4>}});
}

void Bf16(const FloatPanel& panel) {
  RunFloatTiles(panel, panel.k / 2,
                {{Bf16Tile<1, 1>, Bf16Tile<2, 1>, Bf16Tile<3, 1>, Bf16Tile<4, 1>, Bf16Tile<5, 1>,
                  Bf16Tile<6, 1>},
                 {Bf16Tile<1, 4>, Bf16Tile<2, 4>, Bf16Tile<3, 4>, Bf16Tile<4, 4>, Bf16Tile<5, 4>,
                  Bf16Tile<6, 4>}});
}

/// Keeps the compiler from dropping what led to `sums`.
template <class Sums>
[[gnu::always_inline]] inline void Keep(const Sums& sums) {
  asm volatile("" ::"r"(&sums) : "memory");
}

std::int64_t IntegerPeak(std::int64_t repetitions) {
  const __m512i w = _mm512_set1_epi8(3);
  const StepWeights weights = {w, w, w, w};
  const std::int32_t x[] = {0x01020304, 0x05060708, 0x090a0b0c, 0x0d0e0f10};
  const auto* steps = reinterpret_cast<const std::byte*>(x);
  RowSums a;
  RowSums b;
  a.Clear();
  b.Clear();
  for (std::int64_t i = 0; i < repetitions; ++i) {
    a.Add(weights, steps);
    b.Add(weights, steps + kActivationStepBytes);
  }
  float sums[2 * kColumns] = {};
  a.Flush(0, nullptr, sums);
  b.Flush(0, nullptr, sums + kColumns);
  Keep(sums);
  return repetitions * 16 * 64 / 2 * 2;  // two bytes of activations make one product
}

std::int64_t FloatPeak(std::int64_t repetitions) {
  const float x[] = {1, 2, 3, 4};
  const auto* rows = reinterpret_cast<const std::byte*>(x);
  const __m512 w = _mm512_set1_ps(0.5f);
  float sums[4 * kColumns] = {};
  FloatSums<4, 4> tile;
  tile.Load(sums);
  for (std::int64_t i = 0; i < repetitions; ++i) tile.Add(rows, 4, [&](int) { return w; });
  tile.Store(sums);
  Keep(sums);
  return repetitions * 16 * 16 * 2;
}

}  // namespace

const MatmulTiles kAvx512MatmulTiles = {.largest_magnitude = LargestMagnitude,
                                        .quantise = Quantise,
                                        .int8 = Integers<Int8Weights, kInt8Offset>,
                                        .int4 = Integers<Int4Weights, kInt4Offset>,
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

#include <immintrin.h>

#include "kernels/paged_attention_forms.h"

namespace jubal {
namespace {

/// The first `count` of 16 lanes.
[[gnu::always_inline]] inline __mmask16 First(std::int64_t count) {
  return static_cast<__mmask16>(count < 16 ? (1 << count) - 1 : 0xffff);
}

// Load<mask> reads the elements of the mask's lanes; the other lanes are 0.

struct F32 {
  static constexpr std::int64_t kBytes = 4;
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data) {
    return _mm512_loadu_ps(data);
  }
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, data);
  }
};

struct Int16 {
  static constexpr std::int64_t kBytes = 2;
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data) {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data, __mmask16 mask) {
    return Widen(_mm256_maskz_loadu_epi16(mask, data));
  }
  [[gnu::always_inline]] static inline __m512 Widen(__m256i elements) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(elements));
  }
};

struct Int8 {
  static constexpr std::int64_t kBytes = 1;
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data) {
    return Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
  }
  [[gnu::always_inline]] static inline __m512 Load(const std::uint8_t* data, __mmask16 mask) {
    return Widen(_mm_maskz_loadu_epi8(mask, data));
  }
  [[gnu::always_inline]] static inline __m512 Widen(__m128i elements) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(elements));
  }
};

[[gnu::always_inline]] inline void Prefetch(const std::uint8_t* data, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i), _MM_HINT_T0);
  }
}

template <class Kv, bool kScales>
struct Avx512Form {
  static constexpr std::int64_t kElementBytes = Kv::kBytes;
  static constexpr bool kHasScales = kScales;
  static constexpr int kMaxHeads = 8;

  /// All tokens of a page at once.
  template <int kHeads>
  static void Score(const float* q, std::int64_t head_dim, const std::uint8_t* k,
                    std::int64_t /*count*/, const std::uint8_t* next, float* scores) {
    constexpr int kVectors = kPageTokens / 16;
    __m512 sums[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm512_setzero_ps();
    }
    for (std::int64_t d = 0; d < head_dim; ++d) {
      const std::int64_t at = d * kPageTokens * kElementBytes;
      Prefetch(next + at, kPageTokens * kElementBytes);
      __m512 keys[kVectors];
      for (int v = 0; v < kVectors; ++v) keys[v] = Kv::Load(k + at + 16 * v * kElementBytes);
      for (int h = 0; h < kHeads; ++h) {
        const __m512 factor = _mm512_set1_ps(q[h * kMaxHeadDim + d]);
        for (int v = 0; v < kVectors; ++v) {
          sums[h][v] = _mm512_fmadd_ps(factor, keys[v], sums[h][v]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(scores + h * kAttentionRun + 16 * v, sums[h][v]);
      }
    }
  }

  /// Dimensions [d, d + 16 · kVectors), or of a last vector those that `mask` names.
  template <int kHeads, int kVectors, class... Mask>
  [[gnu::always_inline]] static inline void AccumulateSlice(
      const float* weights, std::int64_t head_dim, const std::uint8_t* v, std::int64_t count,
      const std::uint8_t* next, std::int64_t d, float* sums, Mask... mask) {
    __m512 acc[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVectors; ++i) {
        acc[h][i] = _mm512_loadu_ps(sums + h * kMaxHeadDim + d + 16 * i);
      }
    }
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t at = (t * head_dim + d) * kElementBytes;
      Prefetch(next + at, 16 * kVectors * kElementBytes);
      __m512 values[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        values[i] = Kv::Load(v + at + 16 * i * kElementBytes, mask...);
      }
      for (int h = 0; h < kHeads; ++h) {
        const __m512 weight = _mm512_set1_ps(weights[h * kAttentionRun + t]);
        for (int i = 0; i < kVectors; ++i) {
          acc[h][i] = _mm512_fmadd_ps(weight, values[i], acc[h][i]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVectors; ++i) {
        _mm512_storeu_ps(sums + h * kMaxHeadDim + d + 16 * i, acc[h][i]);
      }
    }
  }

  template <int kHeads>
  static void Accumulate(const float* weights, std::int64_t head_dim, const std::uint8_t* v,
                         std::int64_t count, const std::uint8_t* next, float* sums) {
    constexpr int kVectors = kHeads <= 6 ? 4 : 2;
    std::int64_t d = 0;
    for (; d + 16 * kVectors <= head_dim; d += 16 * kVectors) {
      AccumulateSlice<kHeads, kVectors>(weights, head_dim, v, count, next, d, sums);
    }
    for (; d < head_dim; d += 16) {
      AccumulateSlice<kHeads, 1>(weights, head_dim, v, count, next, d, sums, First(head_dim - d));
    }
  }
};

}  // namespace

const AttentionForms kAvx512Attention = {
    &Attend<Avx512Form<F32, false>>,
    &Attend<Avx512Form<Int16, true>>,
    &Attend<Avx512Form<Int8, true>>,
};

}  // namespace jubal

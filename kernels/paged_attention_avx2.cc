#include <immintrin.h>

#include "kernels/paged_attention_forms.h"

namespace jubal {
namespace {

struct F32 {
  static constexpr std::int64_t kBytes = 4;
  [[gnu::always_inline]] static inline __m256 Load8(const std::uint8_t* data) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(data));
  }
  [[gnu::always_inline]] static inline float Load1(const std::uint8_t* data) {
    return *reinterpret_cast<const float*>(data);
  }
};

struct Int16 {
  static constexpr std::int64_t kBytes = 2;
  [[gnu::always_inline]] static inline __m256 Load8(const std::uint8_t* data) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data))));
  }
  [[gnu::always_inline]] static inline float Load1(const std::uint8_t* data) {
    return static_cast<float>(*reinterpret_cast<const std::int16_t*>(data));
  }
};

struct Int8 {
  static constexpr std::int64_t kBytes = 1;
  [[gnu::always_inline]] static inline __m256 Load8(const std::uint8_t* data) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data))));
  }
  [[gnu::always_inline]] static inline float Load1(const std::uint8_t* data) {
    return static_cast<float>(*reinterpret_cast<const std::int8_t*>(data));
  }
};

[[gnu::always_inline]] inline void Prefetch(const std::uint8_t* data, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i), _MM_HINT_T0);
  }
}

template <class Kv, bool kScales>
struct Avx2Form {
  static constexpr std::int64_t kElementBytes = Kv::kBytes;
  static constexpr bool kHasScales = kScales;
  static constexpr int kMaxHeads = 6;

  /// Vectors of 8 keys or values per head that are in registers at once: with the broadcast and
  /// the loaded vectors they must fit in 16.
  static constexpr int Vectors(int heads) { return heads <= 2 ? 4 : 2; }

  template <int kHeads>
  static void Score(const float* q, std::int64_t head_dim, const std::uint8_t* k,
                    std::int64_t count, const std::uint8_t* next, float* scores) {
    constexpr int kVectors = Vectors(kHeads);
    for (std::int64_t t = 0; t < count; t += 8 * kVectors) {
      __m256 sums[kHeads][kVectors];
      for (int h = 0; h < kHeads; ++h) {
        for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_ps();
      }
      for (std::int64_t d = 0; d < head_dim; ++d) {
        const std::int64_t at = (d * kPageTokens + t) * kElementBytes;
        Prefetch(next + at, 8 * kVectors * kElementBytes);
        __m256 keys[kVectors];
        for (int v = 0; v < kVectors; ++v) keys[v] = Kv::Load8(k + at + 8 * v * kElementBytes);
        for (int h = 0; h < kHeads; ++h) {
          const __m256 factor = _mm256_broadcast_ss(q + h * kMaxHeadDim + d);
          for (int v = 0; v < kVectors; ++v) {
            sums[h][v] = _mm256_fmadd_ps(factor, keys[v], sums[h][v]);
          }
        }
      }
      for (int h = 0; h < kHeads; ++h) {
        for (int v = 0; v < kVectors; ++v) {
          _mm256_storeu_ps(scores + h * kAttentionRun + t + 8 * v, sums[h][v]);
        }
      }
    }
  }

  /// Dimensions [d, d + 8 · kVectors).
  template <int kHeads, int kVectors>
  [[gnu::always_inline]] static inline void AccumulateSlice(
      const float* weights, std::int64_t head_dim, const std::uint8_t* v, std::int64_t count,
      const std::uint8_t* next, std::int64_t d, float* sums) {
    __m256 acc[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVectors; ++i) {
        acc[h][i] = _mm256_loadu_ps(sums + h * kMaxHeadDim + d + 8 * i);
      }
    }
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t at = (t * head_dim + d) * kElementBytes;
      Prefetch(next + at, 8 * kVectors * kElementBytes);
      __m256 values[kVectors];
      for (int i = 0; i < kVectors; ++i) values[i] = Kv::Load8(v + at + 8 * i * kElementBytes);
      for (int h = 0; h < kHeads; ++h) {
        const __m256 weight = _mm256_broadcast_ss(weights + h * kAttentionRun + t);
        for (int i = 0; i < kVectors; ++i) {
          acc[h][i] = _mm256_fmadd_ps(weight, values[i], acc[h][i]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVectors; ++i) {
        _mm256_storeu_ps(sums + h * kMaxHeadDim + d + 8 * i, acc[h][i]);
      }
    }
  }

  template <int kHeads>
  static void Accumulate(const float* weights, std::int64_t head_dim, const std::uint8_t* v,
                         std::int64_t count, const std::uint8_t* next, float* sums) {
    constexpr int kVectors = Vectors(kHeads);
    std::int64_t d = 0;
    for (; d + 8 * kVectors <= head_dim; d += 8 * kVectors) {
      AccumulateSlice<kHeads, kVectors>(weights, head_dim, v, count, next, d, sums);
    }
    for (; d + 8 <= head_dim; d += 8) {
      AccumulateSlice<kHeads, 1>(weights, head_dim, v, count, next, d, sums);
    }
    for (; d < head_dim; ++d) {
      for (int h = 0; h < kHeads; ++h) {
        float sum = sums[h * kMaxHeadDim + d];
        for (std::int64_t t = 0; t < count; ++t) {
          sum = __builtin_fmaf(weights[h * kAttentionRun + t],
                               Kv::Load1(v + (t * head_dim + d) * kElementBytes), sum);
        }
        sums[h * kMaxHeadDim + d] = sum;
      }
    }
  }
};

}  // namespace

const AttentionForms kAvx2Attention = {
    &Attend<Avx2Form<F32, false>>,
    &Attend<Avx2Form<Int16, true>>,
    &Attend<Avx2Form<Int8, true>>,
};

}  // namespace jubal

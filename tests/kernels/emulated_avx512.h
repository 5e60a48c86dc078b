#ifndef JUBAL_TESTS_KERNELS_EMULATED_AVX512_H_
#define JUBAL_TESTS_KERNELS_EMULATED_AVX512_H_

// Included before each of the AVX-512 forms when they are compiled for CPUs without AVX-512: what
// they use of it becomes SIMDe's plain C++, and here is what SIMDe 0.7.4 lacks.

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace jubal {

/// Tells the test about a prefetch: emulated_avx512_test.cc.
void RecordPrefetch(const void* address);

namespace emulated_avx512 {

using Int8x16 [[gnu::vector_size(16)]] = std::int8_t;
using Int16x16 [[gnu::vector_size(32)]] = std::int16_t;
using Int32x16 [[gnu::vector_size(64)]] = std::int32_t;

inline __m512 CvtEpi32Ps(__m512i a) { return __builtin_convertvector((Int32x16)a, __m512); }

inline __m512i CvtPsEpi32(__m512 a) {
  for (int i = 0; i < 16; ++i) a[i] = std::nearbyint(a[i]);
  return (__m512i) __builtin_convertvector(a, Int32x16);
}

inline __m128i CvtEpi32Epi8(__m512i a) {
  return (__m128i) __builtin_convertvector((Int32x16)a, Int8x16);
}

inline __m512i CvtEpi16Epi32(__m256i a) {
  return (__m512i) __builtin_convertvector((Int16x16)a, Int32x16);
}

inline __m512i CvtEpi8Epi32(__m128i a) {
  return (__m512i) __builtin_convertvector((Int8x16)a, Int32x16);
}

inline __m512i SraiEpi32(__m512i a, int bits) { return (__m512i)((Int32x16)a >> bits); }

/// 0 where the mask has no bit, and nothing is read there.
template <class Lane>
std::array<Lane, 16> LoadMasked(std::uint32_t mask, const void* memory) {
  std::array<Lane, 16> lanes{};
  for (std::size_t i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) {
      std::memcpy(&lanes[i], static_cast<const char*>(memory) + i * sizeof(Lane), sizeof(Lane));
    }
  }
  return lanes;
}

inline __m512 MaskzLoaduPs(std::uint32_t mask, const void* memory) {
  return simde_mm512_loadu_ps(LoadMasked<float>(mask, memory).data());
}

inline __m256i MaskzLoaduEpi16(std::uint32_t mask, const void* memory) {
  return simde_mm256_loadu_epi16(LoadMasked<std::int16_t>(mask, memory).data());
}

inline __m128i MaskzLoaduEpi8(std::uint32_t mask, const void* memory) {
  return simde_mm_loadu_epi8(LoadMasked<std::int8_t>(mask, memory).data());
}

/// Writes nothing where the mask has no bit.
inline void MaskStoreuEpi64(void* memory, std::uint32_t mask, __m256i a) {
  for (std::size_t i = 0; i < 4; ++i) {
    if ((mask >> i & 1) != 0)
      std::memcpy(static_cast<char*>(memory) + i * 8, reinterpret_cast<const char*>(&a) + i * 8, 8);
  }
}

}  // namespace emulated_avx512
}  // namespace jubal

// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
#define _mm512_cvtepi32_ps jubal::emulated_avx512::CvtEpi32Ps
#define _mm512_cvtps_epi32 jubal::emulated_avx512::CvtPsEpi32
#define _mm512_cvtepi32_epi8 jubal::emulated_avx512::CvtEpi32Epi8
#define _mm512_cvtepi16_epi32 jubal::emulated_avx512::CvtEpi16Epi32
#define _mm512_cvtepi8_epi32 jubal::emulated_avx512::CvtEpi8Epi32
#define _mm512_srai_epi32 jubal::emulated_avx512::SraiEpi32
#define _mm512_maskz_loadu_ps jubal::emulated_avx512::MaskzLoaduPs
#define _mm256_maskz_loadu_epi16 jubal::emulated_avx512::MaskzLoaduEpi16
#define _mm_maskz_loadu_epi8 jubal::emulated_avx512::MaskzLoaduEpi8
#define _mm256_mask_storeu_epi64 jubal::emulated_avx512::MaskStoreuEpi64
#undef _mm_prefetch
#define _mm_prefetch(address, hint) jubal::RecordPrefetch(address)
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

#endif  // JUBAL_TESTS_KERNELS_EMULATED_AVX512_H_

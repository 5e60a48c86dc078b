#ifndef JUBAL_KERNELS_FLOAT16_H_
#define JUBAL_KERNELS_FLOAT16_H_

#include <cstdint>

namespace jubal {

// IEEE binary16, as F16C converts it: exact to float, rounded to nearest even from float, beyond
// 65504 + 16 to infinity. Always inlined: a copy compiled for AVX2 must not serve the rest of the
// program.

[[gnu::always_inline]] inline float FloatFromHalf(std::uint16_t half) {
  // Exponent and mantissa move to their places; a multiplication corrects the exponent's bias, and
  // normalises subnormal numbers on the way.
  const std::uint32_t magnitude = std::uint32_t{half & 0x7FFFu} << 13;
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  const std::uint32_t infinite = value >= 65536.0f ? 0x7F800000u : 0u;  // or not a number
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) | infinite | sign);
}

[[gnu::always_inline]] inline std::uint16_t HalfFromFloat(float value) {
  constexpr std::uint32_t kInfinity = 255u << 23;
  constexpr std::uint32_t kTooLarge = (127u + 16u) << 23;        // 65536
  constexpr std::uint32_t kSmallestNormal = (127u - 14u) << 23;  // 2⁻¹⁴
  constexpr std::uint32_t kAligner = (127u - 24u + 23u) << 23;   // 0.5: its ulp is 2⁻²⁴
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = bits & 0x80000000u;
  const std::uint32_t magnitude = bits ^ sign;
  std::uint32_t half;
  if (magnitude >= kTooLarge) {
    half = magnitude > kInfinity ? 0x7E00u : 0x7C00u;
  } else if (magnitude < kSmallestNormal) {  // the addition rounds to multiples of 2⁻²⁴
    const float sum = __builtin_bit_cast(float, magnitude) + __builtin_bit_cast(float, kAligner);
    half = __builtin_bit_cast(std::uint32_t, sum) - kAligner;
  } else {
    const std::uint32_t odd = magnitude >> 13 & 1u;
    half = (magnitude - (112u << 23) + 0xFFFu + odd) >> 13;
  }
  return static_cast<std::uint16_t>(half | sign >> 16);
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_FLOAT16_H_

#ifndef JUBAL_KERNELS_FLOAT_MATH_H_
#define JUBAL_KERNELS_FLOAT_MATH_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace jubal {

// Functions of one float, without branches or calls, so that loops over them vectorise, and without
// fused operations, so that every instruction set computes the same bits (libm promises neither).
// Always inlined: a copy compiled for AVX2 must not serve the rest of the program.

/// condition ? a : b by mask, since GCC turns the plain form into branches, and loops with those do
/// not vectorise.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline float Select(bool condition, float a, float b) {
  const std::uint32_t mask = -static_cast<std::uint32_t>(condition);
  return __builtin_bit_cast(float, (__builtin_bit_cast(std::uint32_t, a) & mask) |
                                       (__builtin_bit_cast(std::uint32_t, b) & ~mask));
}

/// e^x within 1.5 ulp; 0 below about −104, infinity above about 88.7.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline float FastExp(float x) {
  x = Select(x < -104.0f, -104.0f, x);
  x = Select(x > 89.0f, 89.0f, x);
  // x = n · ln 2 + r, |r| ≤ ln 2 / 2. Adding 1.5 · 2²³ rounds to an integer and leaves it in the
  // low bits; ln 2 is cut in two so that n times its upper part is exact.
  constexpr float kRounder = 12582912.0f;
  const float rounded = x * 1.44269504088896f + kRounder;
  const float n = rounded - kRounder;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // e^r, polynomial of the Cephes library's expf.
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, since n reaches −150 and 128.
  const auto exponent = static_cast<std::int32_t>(__builtin_bit_cast(std::uint32_t, rounded) -
                                                  __builtin_bit_cast(std::uint32_t, kRounder));
  const std::int32_t half = exponent >> 1;
  const auto power = [](std::int32_t e) __attribute__((always_inline)) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(e + 127) << 23);
  };
  return p * power(half) * power(exponent - half);
}

/// tanh x within 3 ulp.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline float FastTanh(float x) {
  const float a = __builtin_fabsf(x);
  // Near 0: polynomial of the Cephes library's tanhf.
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = a + a * (z * p);
  const float far = 1.0f - 2.0f / (FastExp(2.0f * a) + 1.0f);
  return __builtin_copysignf(Select(a < 0.625f, near, far), x);
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_FLOAT_MATH_H_

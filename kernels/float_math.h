#ifndef JUBAL_KERNELS_FLOAT_MATH_H_
#define JUBAL_KERNELS_FLOAT_MATH_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace jubal {

// Functions of one number without calls or fused operations, so that every instruction set computes
// the same bits, and, if it is a float, without branches, so that loops over them vectorise (libm
// promises neither). Always inlined: a copy compiled for AVX2 must not serve the rest of the
// program.

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

struct SineCosine {
  float sine;
  float cosine;
};

/// Both for |x| ≤ 2³¹, computed in double, whose error of less than 2⁻³⁰ units in the last place
/// of a float hardly ever shows once they are rounded.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline SineCosine FastSineCosine(double x) {
  // x = n · π/2 + r, |r| ≤ π/4. π/2 is cut in three so that n times its upper parts, of 22 bits
  // each, is exact.
  constexpr double kRounder = 6755399441055744.0;  // 1.5 · 2⁵²
  const double rounded = x * 0.63661977236758134 + kRounder;
  const double n = rounded - kRounder;
  const double r =
      ((x - n * 0x1.921fb00000000p+0) - n * 0x1.5110b00000000p-22) - n * 0x1.18469898cc517p-44;
  // Polynomials of fdlibm's kernels.
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * z - 2.50507602534068634195e-08;
  s = s * z + 2.75573137070700676789e-06;
  s = s * z - 1.98412698298579493134e-04;
  s = s * z + 8.33333333332248946124e-03;
  s = s * z - 1.66666666666666324348e-01;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-09;
  c = c * z - 2.75573143513906633035e-07;
  c = c * z + 2.48015872894767294178e-05;
  c = c * z - 1.38888888888741095749e-03;
  c = c * z + 4.16666666666666019037e-02;
  const auto sine = static_cast<float>(r + r * (z * s));
  const auto cosine = static_cast<float>(1.0 - 0.5 * z + z * (z * c));
  // A turn by n quarters swaps the two when n is odd, and changes signs.
  const auto quarters = static_cast<std::uint32_t>(__builtin_bit_cast(std::uint64_t, rounded));
  const bool odd = (quarters & 1) != 0;
  const auto turn = [](float value, std::uint32_t half_turns) __attribute__((always_inline)) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
    return __builtin_bit_cast(float, bits ^ (half_turns & 2u) << 30);
  };
  return {turn(Select(odd, cosine, sine), quarters), turn(Select(odd, sine, cosine), quarters + 1)};
}

// Both activations are x · sigmoid(y): (1 + tanh(z)) / 2 = 1 / (1 + e^−2z). In this form the
// result keeps its relative accuracy where 1 + tanh(z) would cancel.

/// gated_activation.h's gelu_tanh.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline float GeluTanh(float x) {
  constexpr float kMinusTwoRootTwoOverPi = -1.5957691216057308f;
  return x / (1.0f + FastExp(kMinusTwoRootTwoOverPi * (x + 0.044715f * (x * x * x))));
}

/// gated_activation.h's silu.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline float Silu(float x) {
  return x / (1.0f + FastExp(-x));
}

/// ln x of a positive, normal double, within 2 ulp.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline double FastLog(double x) {
  // x = 2^n · m, √½ ≤ m < √2.
  const auto bits = __builtin_bit_cast(std::uint64_t, x);
  auto n = static_cast<double>(static_cast<std::int32_t>(bits >> 52) - 1023);
  double m = __builtin_bit_cast(double, (bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    n += 1.0;
  }
  // ln m = 2 artanh f, as its power series: f² is below 0.03.
  const double f = (m - 1.0) / (m + 1.0);
  const double z = f * f;
  double p = 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  // ln 2 is cut in two so that n times its upper part is exact.
  constexpr double kUpper = 0x1.62e42fefa0000p-1;
  constexpr double kLower = 0x1.cf79abc9e3b3ap-40;
  return n * kUpper + (n * kLower + 2.0 * f * (p * z) + 2.0 * f);
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_FLOAT_MATH_H_

#include "kernels/float16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace jubal {
namespace {

/// The value that binary16's definition gives to finite bits.
double ValueOf(std::uint32_t half) {
  const int exponent = static_cast<int>(half >> 10 & 31u);
  const auto fraction = static_cast<double>(half & 1023u);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
  return half >> 15 ? -magnitude : magnitude;
}

// Breaks: every cached key and value is read wrongly.
TEST(Float16Test, ReadsEveryNumberExactly) {
  for (std::uint32_t half = 0; half < 0x10000u; ++half) {
    const float value = FloatFromHalf(static_cast<std::uint16_t>(half));
    if ((half & 0x7C00u) != 0x7C00u) {
      ASSERT_EQ(value, ValueOf(half)) << half;
      ASSERT_EQ(HalfFromFloat(value), half);
    } else if ((half & 0x3FFu) == 0) {
      ASSERT_EQ(value, half >> 15 ? -INFINITY : INFINITY);
      ASSERT_EQ(HalfFromFloat(value), half);
    } else {
      ASSERT_TRUE(std::isnan(value));
      ASSERT_TRUE(std::isnan(FloatFromHalf(HalfFromFloat(value))));
    }
  }
}

// Breaks: cached values are biased, and CPU and GPU caches differ.
TEST(Float16Test, RoundsToNearestEven) {
  for (std::uint32_t half = 0; half < 0x7BFFu; ++half) {
    const double low = ValueOf(half);
    const double high = ValueOf(half + 1);
    const auto middle = static_cast<float>((low + high) / 2);  // exact
    const std::uint32_t even = half % 2 == 0 ? half : half + 1;
    ASSERT_EQ(HalfFromFloat(middle), even) << half;
    ASSERT_EQ(HalfFromFloat(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(HalfFromFloat(std::nextafter(middle, 1e6f)), half + 1);
    ASSERT_EQ(HalfFromFloat(-middle), even | 0x8000u);
  }
  EXPECT_EQ(HalfFromFloat(65519.996f), 0x7BFFu);
  EXPECT_EQ(HalfFromFloat(65520.0f), 0x7C00u);
  EXPECT_EQ(HalfFromFloat(3e38f), 0x7C00u);
  EXPECT_EQ(HalfFromFloat(1e-40f), 0u);
}

}  // namespace
}  // namespace jubal

#include "kernels/float_math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace jubal {
namespace {

/// How many units in the last place of the nearest float `value` lies from `expected`.
double Ulps(float value, double expected) {
  int exponent;
  std::frexp(static_cast<float>(expected), &exponent);
  return std::fabs(value - expected) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

/// Calls visit(x) for floats of all magnitudes and both signs.
template <class Visit>
void ForFloats(const Visit& visit) {
  for (std::uint32_t bits = 0; bits < 0x7F800000u; bits += 4999) {
    visit(std::bit_cast<float>(bits));
    visit(-std::bit_cast<float>(bits));
  }
}

// Breaks: softmax weights, activations and log-probabilities drift from the model's.
TEST(FloatMathTest, ExpIsWithinTwoUlps) {
  ForFloats([](float x) {
    if (std::fabs(x) > 88.7f) return;
    ASSERT_LE(Ulps(FastExp(x), std::exp(static_cast<double>(x))), 1.5) << x;
  });
  for (double x = -87.3; x < 88.7; x += 1e-4) {
    const auto rounded = static_cast<float>(x);
    ASSERT_LE(Ulps(FastExp(rounded), std::exp(static_cast<double>(rounded))), 1.5) << x;
  }
}

// Breaks: log-probabilities drift from the model's.
TEST(FloatMathTest, LogIsWithinTwoUlps) {
  EXPECT_EQ(FastLog(1.0), 0.0);
  const auto check = [](double x) {
    const double expected = std::log(x);
    const double ulp = std::fabs(std::nextafter(expected, INFINITY) - expected);
    ASSERT_LE(std::fabs(FastLog(x) - expected), 2.0 * ulp) << x;
  };
  for (double x = 1.0; x < 0x1p24; x *= 1.0001) check(x);
  for (double x = 1e-300; x < 1e300; x *= 1.01) check(x);
  for (double distance = 1e-15; distance < 0.5; distance *= 1.01) {
    check(1.0 + distance);
    check(1.0 - distance);
  }
}

// Breaks: a key far below the maximum gets garbage instead of no weight.
TEST(FloatMathTest, ExpHasTheRightLimits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FastExp(0.0f), 1.0f);
  EXPECT_EQ(FastExp(-kInfinity), 0.0f);
  EXPECT_EQ(FastExp(-1e30f), 0.0f);
  EXPECT_EQ(FastExp(-105.0f), 0.0f);
  EXPECT_GT(FastExp(-103.0f), 0.0f);
  EXPECT_EQ(FastExp(kInfinity), kInfinity);
  EXPECT_EQ(FastExp(89.0f), kInfinity);
  EXPECT_TRUE(std::isnan(FastExp(std::numeric_limits<float>::quiet_NaN())));
}

// Breaks: soft-capped attention scores drift.
TEST(FloatMathTest, TanhIsWithinThreeUlps) {
  ForFloats([](float x) {
    ASSERT_LE(Ulps(FastTanh(x), std::tanh(static_cast<double>(x))), 3.0) << x;
    ASSERT_EQ(FastTanh(-x), -FastTanh(x));
  });
  for (double x = -10.0; x < 10.0; x += 1e-4) {
    const auto rounded = static_cast<float>(x);
    ASSERT_LE(Ulps(FastTanh(rounded), std::tanh(static_cast<double>(rounded))), 3.0) << x;
  }
  EXPECT_EQ(FastTanh(1e30f), 1.0f);
  EXPECT_TRUE(std::isnan(FastTanh(std::numeric_limits<float>::quiet_NaN())));
}

// Breaks: rotary positions drift, in long contexts above all.
TEST(FloatMathTest, SineAndCosineAreThoseOfDoubleRounded) {
  const auto expect = [](float x) {
    const SineCosine both = FastSineCosine(x);
    ASSERT_LE(Ulps(both.sine, std::sin(static_cast<double>(x))), 0.5 + 1e-6) << x;
    ASSERT_LE(Ulps(both.cosine, std::cos(static_cast<double>(x))), 0.5 + 1e-6) << x;
  };
  ForFloats([&](float x) {
    if (std::fabs(x) <= 0x1p31f) expect(x);
  });
  for (int position = 0; position < 300000; ++position) expect(static_cast<float>(position));
  // Near multiples of a quarter turn, where little is left of x.
  for (int n = 1; n < 100000; ++n) expect(static_cast<float>(n * 1.5707963267948966));
}

}  // namespace
}  // namespace jubal

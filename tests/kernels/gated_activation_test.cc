#include "kernels/gated_activation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

double InDouble(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

// Breaks: experts use another activation than the model was trained with. The numbers are
// jax.nn.gelu's and jax.nn.silu's at 1, −2 and 0.
TEST(GatedActivationTest, HandComputed) {
  const Floats gate({1, 3}, {1.0f, -2.0f, 0.0f});
  const Floats up({1, 3}, {10.0f, 1.0f, 5.0f});
  Floats out({1, 3});
  ApplyGatedActivation(Activation::kGeluTanh, &gate[0], &up[0], 3, &out[0]);
  EXPECT_NEAR(out[0], 8.411919906, 1e-6);
  EXPECT_NEAR(out[1], -0.045402306, 1e-8);
  EXPECT_EQ(out[2], 0.0f);
  ApplyGatedActivation(Activation::kSilu, &gate[0], &up[0], 3, &out[0]);
  EXPECT_NEAR(out[0], 7.310585786, 1e-6);
  EXPECT_NEAR(out[1], -0.238405844, 3e-8);
  EXPECT_EQ(out[2], 0.0f);
}

// Breaks: the activation is inaccurate somewhere, or elements are left out.
TEST(GatedActivationTest, AgreesWithDoublePrecision) {
  constexpr std::int64_t kColumns = 4099;
  Floats gate({3, kColumns});
  for (std::int64_t i = 0; i < 3 * kColumns; ++i) gate[i] = static_cast<float>(i - 6000) * 2e-3f;
  const Floats up = RandomFloats({3, kColumns}, 1);
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    Floats out({3, kColumns});
    ApplyGatedActivation(activation, &gate[0], &up[0], 3 * kColumns, &out[0]);
    for (std::int64_t i = 0; i < 3 * kColumns; ++i) {
      const double exact = InDouble(activation, gate[i]) * up[i];
      // e^y is off by |y| roundings of y and two of its own, the rest by five; the reference's
      // 1 + tanh cancels to an error of 1e-16 · x.
      const double y = 1.6 * (std::fabs(gate[i]) + 0.045 * std::pow(std::fabs(gate[i]), 3));
      const double tolerance = std::fabs(exact) * (4 * y + 8) * 6e-8 + 1e-14;
      ASSERT_NEAR(out[i], exact, tolerance) << gate[i];
    }
  }
}

// Breaks: huge gates turn into NaN.
TEST(GatedActivationTest, TakesHugeGates) {
  const Floats gate({1, 2}, {1e30f, -1e30f});
  const Floats up({1, 2}, {2.0f, 2.0f});
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    Floats out({1, 2});
    ApplyGatedActivation(activation, &gate[0], &up[0], 2, &out[0]);
    EXPECT_EQ(out[0], 2e30f);
    EXPECT_EQ(out[1], 0.0f);
  }
}

// Breaks: the result may not replace the gate.
TEST(GatedActivationTest, WorksInPlace) {
  Floats gate = RandomFloats({1, 15}, 1);
  const Floats up = RandomFloats({1, 15}, 2);
  Floats out({1, 15});
  ApplyGatedActivation(Activation::kGeluTanh, &gate[0], &up[0], 15, &out[0]);
  ApplyGatedActivation(Activation::kGeluTanh, &gate[0], &up[0], 15, &gate[0]);
  for (std::int64_t i = 0; i < 15; ++i) EXPECT_EQ(gate[i], out[i]);
}

}  // namespace
}  // namespace jubal

#include "kernels/gated_activation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/run.h"
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
  const Ints rows({1}, {1});
  Floats out({1, 3});
  GatedActivation op{out.view(), gate.view(), up.view(), rows.view(), Activation::kGeluTanh};
  RunSpecification(op);
  EXPECT_NEAR(out[0], 8.411919906, 1e-6);
  EXPECT_NEAR(out[1], -0.045402306, 1e-8);
  EXPECT_EQ(out[2], 0.0f);
  op.activation = Activation::kSilu;
  RunSpecification(op);
  EXPECT_NEAR(out[0], 7.310585786, 1e-6);
  EXPECT_NEAR(out[1], -0.238405844, 3e-8);
  EXPECT_EQ(out[2], 0.0f);
}

// Breaks: the activation is inaccurate somewhere, or rows wider than one task are mangled.
TEST(GatedActivationTest, AgreesWithDoublePrecision) {
  constexpr std::int64_t kColumns = 4099;
  Floats gate({3, kColumns});
  for (std::int64_t i = 0; i < 3 * kColumns; ++i) gate[i] = static_cast<float>(i - 6000) * 2e-3f;
  const Floats up = RandomFloats({3, kColumns}, 1);
  const Ints rows({1}, {3});
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    Floats out({3, kColumns});
    RunSpecification(GatedActivation{out.view(), gate.view(), up.view(), rows.view(), activation});
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
  const Ints rows({1}, {1});
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    Floats out({1, 2});
    RunSpecification(GatedActivation{out.view(), gate.view(), up.view(), rows.view(), activation});
    EXPECT_EQ(out[0], 2e30f);
    EXPECT_EQ(out[1], 0.0f);
  }
}

// Breaks: rows beyond those in use are computed, or the result may not replace the gate.
TEST(GatedActivationTest, WorksInPlaceOnTheFirstRows) {
  for (const std::int32_t used : {0, 2}) {
    Floats gate = RandomFloats({3, 5}, 1);
    const std::vector<float> before = gate.values();
    const Floats up = RandomFloats({3, 5}, 2);
    const Ints rows({1}, {used});
    Floats out({3, 5}, -1.0f);
    RunSpecification(GatedActivation{out.view(), gate.view(), up.view(), rows.view()});
    RunSpecification(GatedActivation{gate.view(), gate.view(), up.view(), rows.view()});
    for (std::int64_t i = 0; i < 15; ++i) {
      EXPECT_EQ(gate[i], i < 5 * used ? out[i] : before[static_cast<std::size_t>(i)]);
    }
    EXPECT_EQ(out[14], -1.0f);
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: every layer's input is scaled wrongly.
TEST(RmsNormTest, HandComputed) {
  const Floats x({1, 2}, {3.0f, 4.0f});  // mean square 12.5
  const Floats scale({2}, {1.0f, 2.0f});
  Floats out({1, 2});
  RunSpecification(RmsNorm{out.view(), x.view(), scale.view(), 12.5f});
  EXPECT_FLOAT_EQ(out[0], 3.0f / 5.0f);
  EXPECT_FLOAT_EQ(out[1], 8.0f / 5.0f);
}

// Breaks: the error grows with the width of the model.
TEST(RmsNormTest, AgreesWithDoublePrecision) {
  for (const std::int64_t hidden : {1, 7, 8, 9, 31, 6144}) {
    const Floats x = RandomFloats({9, hidden}, 1, 5.0f);
    const Floats scale = RandomFloats({hidden}, 2);
    Floats out({9, hidden});
    RunSpecification(RmsNorm{out.view(), x.view(), scale.view(), 1e-5f});
    for (std::int64_t t = 0; t < 9; ++t) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < hidden; ++i) {
        squares += std::pow(static_cast<double>(x[t * hidden + i]), 2);
      }
      const double norm = std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
      for (std::int64_t i = 0; i < hidden; ++i) {
        const double expected = x[t * hidden + i] * static_cast<double>(scale[i]) / norm;
        // Four roundings to float, the one of epsilon included.
        ASSERT_NEAR(out[t * hidden + i], expected, std::fabs(expected) * 4 * 6e-8 + 1e-30);
      }
    }
  }
}

// Breaks: a token's values depend on the batch.
TEST(RmsNormTest, ARowDependsOnItselfAlone) {
  const Floats x = RandomFloats({37, 100}, 3);
  const Floats scale = RandomFloats({100}, 4);
  Floats all({37, 100});
  RunSpecification(RmsNorm{all.view(), x.view(), scale.view()});
  for (std::int64_t t = 0; t < 37; ++t) {
    Floats one({1, 100});
    RunSpecification(RmsNorm{one.view(), x.view().Rows(t, 1), scale.view()});
    for (std::int64_t i = 0; i < 100; ++i) ASSERT_EQ(one[i], all[t * 100 + i]);
  }
}

// Breaks: norms that the decoder runs in place.
TEST(RmsNormTest, WorksInPlace) {
  Floats x = RandomFloats({3, 20}, 5);
  const Floats scale = RandomFloats({20}, 6);
  Floats out({3, 20});
  RunSpecification(RmsNorm{out.view(), x.view(), scale.view()});
  RunSpecification(RmsNorm{x.view(), x.view(), scale.view()});
  EXPECT_EQ(x.values(), out.values());
}

// Breaks: an idle step crashes, or a padding row of zeros turns into NaN.
TEST(RmsNormTest, TakesNoTokensAndZeros) {
  const Floats scale({4}, 1.0f);
  Floats none({0, 4});
  RunSpecification(RmsNorm{none.view(), none.view(), scale.view()});
  Floats zeros({1, 4});
  RunSpecification(RmsNorm{zeros.view(), zeros.view(), scale.view()});
  EXPECT_EQ(zeros.values(), std::vector<float>(4));
}

}  // namespace
}  // namespace jubal

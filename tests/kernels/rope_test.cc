#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: the model sees interleaved pairs, the wrong sign or the wrong angle.
TEST(RopeTest, RotatesHalfSplitPairs) {
  Floats heads({1, 4}, {1.0f, 2.0f, 3.0f, 4.0f});
  const Ints positions({1}, {3});
  const Floats frequencies({2}, {0.5f, 0.25f});
  RunSpecification(Rope{heads.view(), positions.view(), frequencies.view()});
  EXPECT_NEAR(heads[0], 1 * std::cos(1.5) - 3 * std::sin(1.5), 4e-7);
  EXPECT_NEAR(heads[2], 3 * std::cos(1.5) + 1 * std::sin(1.5), 4e-7);
  EXPECT_NEAR(heads[1], 2 * std::cos(0.75) - 4 * std::sin(0.75), 4e-7);
  EXPECT_NEAR(heads[3], 4 * std::cos(0.75) + 2 * std::sin(0.75), 4e-7);
}

// Breaks: the first token of a prompt is turned.
TEST(RopeTest, PositionZeroChangesNothing) {
  Floats heads = RandomFloats({1, 12}, 1);
  const std::vector<float> before = heads.values();
  const Ints positions({1}, {0});
  const Floats frequencies({3}, {1.0f, 0.1f, 0.01f});
  RunSpecification(Rope{heads.view(), positions.view(), frequencies.view()});
  EXPECT_EQ(heads.values(), before);
}

// Breaks: long contexts, wide heads, or heads beyond the first are turned by other angles.
TEST(RopeTest, AgreesWithDoublePrecision) {
  constexpr std::int64_t kHalf = 72;  // more pairs than one block of sines
  constexpr std::int64_t kHeads = 3;
  Floats heads = RandomFloats({6, kHeads * 2 * kHalf}, 2);
  const std::vector<float> before = heads.values();
  const Ints positions({6}, {0, 1, 100, 8191, 131071, 7});
  Floats frequencies({kHalf});
  for (std::int64_t i = 0; i < kHalf; ++i) {
    frequencies[i] = static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / kHalf));
  }
  RunSpecification(Rope{heads.view(), positions.view(), frequencies.view()});
  for (std::int64_t t = 0; t < 6; ++t) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      for (std::int64_t i = 0; i < kHalf; ++i) {
        const float angle = static_cast<float>(positions[t]) * frequencies[i];
        const auto low = static_cast<std::size_t>((t * kHeads + h) * 2 * kHalf + i);
        const std::size_t high = low + kHalf;
        const double a = before[low];
        const double b = before[high];
        const double c = std::cos(static_cast<double>(angle));
        const double s = std::sin(static_cast<double>(angle));
        // Two rounded factors, products and one sum of terms below |a| + |b|.
        const double tolerance = (std::fabs(a) + std::fabs(b)) * 3 * 6e-8;
        ASSERT_NEAR(heads.values()[low], a * c - b * s, tolerance);
        ASSERT_NEAR(heads.values()[high], b * c + a * s, tolerance);
      }
    }
  }
}

// Breaks: q and k that are columns of one projection's output are misread.
TEST(RopeTest, LeavesNeighbouringColumnsAlone) {
  Floats wide({2, 6}, 1.0f);
  const Ints positions({2}, {1, 2});
  const Floats frequencies({1}, {1.0f});
  RunSpecification(Rope{wide.view().Columns(2, 2), positions.view(), frequencies.view()});
  for (const std::int64_t i : {0, 1, 4, 5, 6, 7, 10, 11}) EXPECT_EQ(wide[i], 1.0f);
  EXPECT_NEAR(wide[8], std::cos(2.0) - std::sin(2.0), 4e-7);
}

// Breaks: an idle step crashes.
TEST(RopeTest, TakesNoTokens) {
  Floats heads({0, 4});
  const Ints positions({0});
  const Floats frequencies({2}, {1.0f, 0.1f});
  RunSpecification(Rope{heads.view(), positions.view(), frequencies.view()});
}

}  // namespace
}  // namespace jubal

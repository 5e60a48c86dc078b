#include "kernels/fill_drawn_tokens.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: a sequence goes on with another sequence's token, or with one that was never drawn.
TEST(FillDrawnTokensTest, PutsEachDrawInItsPlaces) {
  Ints ids({6}, {4, -1, 0, -3, -1, 9});
  const Ints drawn({3}, {70, 80, 90});
  RunSpecification(FillDrawnTokens{ids.view(), drawn.view()});
  EXPECT_EQ(ids.values(), (std::vector<std::int32_t>{4, 70, 0, 90, 70, 9}));
}

// Breaks: a damaged plan reads beyond what was drawn.
TEST(FillDrawnTokensDeathTest, KnowsNoOtherDraws) {
  Ints ids({1}, {-4});
  const Ints drawn({3}, {70, 80, 90});
  EXPECT_DEATH(RunSpecification(FillDrawnTokens{ids.view(), drawn.view()}), "drawn.size");
}

}  // namespace
}  // namespace jubal

#include "kernels/padded_pairs.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: a padded exchange sends home other pairs' outputs.
TEST(PackPairsTest, GivesEachTokenItsSlots) {
  const Floats x({3, 2}, {1, 2, 3, 4, 5, 6});
  const Ints row_of({3, 3}, {-1, 2, 0, -1, -1, -1, 1, -1, -1});
  Floats out({6, 2}, -9.0f);
  RunSpecification(
      PackPairs{.out = out.view(), .x = x.view(), .row_of = row_of.view(), .slots = 2});
  EXPECT_EQ(out.values(), (std::vector<float>{5, 6, 1, 2, -9, -9, -9, -9, 3, 4, -9, -9}));
}

// Breaks: a home takes other pairs' outputs, where groups of experts are uneven too.
TEST(PlacePairsTest, CountsTheChoicesInEachGroup) {
  const Ints ids({2, 3}, {4, 0, 2, 1, 0, 3});
  Ints row_of({2, 3}, 99);
  // Of 5 experts two groups have 0 and 1, and 2 to 4.
  RunSpecification(PlacePairs{
      .row_of = row_of.view(), .topk_ids = ids.view(), .experts = 5, .groups = 2, .slots = 3});
  EXPECT_EQ(row_of.values(), (std::vector<std::int32_t>{6, 0, 7, 3, 4, 9}));
}

// Breaks: the two operations disagree on a place, for some number of experts or groups.
TEST(PlacePairsTest, FindsWhatWasPacked) {
  for (const std::int64_t experts : {1, 2, 5, 8}) {
    for (std::int64_t groups = 1; groups <= experts; ++groups) {
      const std::int64_t slots = (experts + groups - 1) / groups;
      Ints ids({2, experts});
      for (std::int64_t i = 0; i < 2 * experts; ++i) {
        ids[i] = static_cast<std::int32_t>(i < experts ? i : 2 * experts - 1 - i);
      }
      Floats returned({groups * 2 * slots, 1}, -1.0f);
      for (std::int64_t g = 0; g < groups; ++g) {
        // Row e of x is that of expert e.
        Floats x({experts, 1});
        Ints row_of({2, experts}, -1);
        for (std::int64_t e = experts * g / groups; e < experts * (g + 1) / groups; ++e) {
          x[e] = static_cast<float>(e);
          row_of[e] = static_cast<std::int32_t>(e);
          row_of[2 * experts - 1 - e] = static_cast<std::int32_t>(e);
        }
        RunSpecification(PackPairs{.out = returned.view().Rows(g * 2 * slots, 2 * slots),
                                   .x = x.view(),
                                   .row_of = row_of.view(),
                                   .slots = slots});
      }
      Ints row_of({2, experts});
      RunSpecification(PlacePairs{.row_of = row_of.view(),
                                  .topk_ids = ids.view(),
                                  .experts = experts,
                                  .groups = groups,
                                  .slots = slots});
      for (std::int64_t i = 0; i < 2 * experts; ++i) {
        EXPECT_EQ(returned[row_of[i]], static_cast<float>(ids[i])) << groups << " of " << experts;
      }
    }
  }
}

}  // namespace
}  // namespace jubal

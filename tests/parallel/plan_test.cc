// A wrong seat or range loses or doubles a part of the model: every answer is wrong. A plan that is
// refused without saying why leaves the user guessing at degrees.

#include "parallel/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "kernels/error.h"

namespace jubal {
namespace {

std::string RefusalOf(int world, int experts, Exchange exchange, std::optional<int> expert_parallel,
                      int data_parallel) {
  try {
    MakePlan(world, experts, exchange, expert_parallel, data_parallel);
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUsage);
    return error.what();
  }
  return "";
}

TEST(PlanTest, DefaultsFollowTheExchange) {
  const ParallelPlan replicated = MakePlan(8, 8, Exchange::kReplicated, std::nullopt, 1);
  EXPECT_EQ(replicated.expert, 1);
  EXPECT_EQ(replicated.expert_tensor, 8);
  EXPECT_EQ(replicated.ToString(), "data 1 × tensor 8 = expert 1 × expert_tensor 8, replicated");
  const ParallelPlan all_to_all = MakePlan(12, 8, Exchange::kAllToAll, std::nullopt, 2);
  EXPECT_EQ(all_to_all.expert, 6);
  EXPECT_EQ(all_to_all.expert_tensor, 2);
  EXPECT_EQ(all_to_all.ToString(), "data 2 × tensor 6 = expert 6 × expert_tensor 2, all-to-all");
  EXPECT_EQ(MakePlan(7, 5, Exchange::kAllToAll, std::nullopt, 1).expert, 1);
}

TEST(PlanTest, RefusalsNameTheNumbers) {
  EXPECT_NE(RefusalOf(6, 8, Exchange::kReplicated, 4, 1).find("expert-parallel degree 4 does not"),
            std::string::npos);
  EXPECT_NE(RefusalOf(6, 8, Exchange::kReplicated, 1, 4).find("data-parallel degree 4 does not"),
            std::string::npos);
  EXPECT_NE(RefusalOf(16, 8, Exchange::kReplicated, 4, 1).find("16 ranks"), std::string::npos);
  EXPECT_NE(RefusalOf(16, 8, Exchange::kReplicated, 1, 2).find("raise the expert-parallel degree"),
            std::string::npos);
  EXPECT_NE(RefusalOf(8, 4, Exchange::kAllToAll, 8, 1).find("4 experts"), std::string::npos);
  EXPECT_NE(RefusalOf(8, 4, Exchange::kAllToAll, 0, 1), "");
  EXPECT_NE(RefusalOf(8, 4, Exchange::kAllToAll, -2, 1), "");
  EXPECT_NE(RefusalOf(8, 4, Exchange::kAllToAll, 1, 0), "");
}

TEST(PlanTest, OwnedRangesTileTheExtent) {
  for (const std::int64_t extent : {0, 1, 2, 7, 8, 33, 131072}) {
    for (int count = 1; count <= 9; ++count) {
      std::int64_t next = 0;
      for (int index = 0; index < count; ++index) {
        const Range owned = OwnedRange(extent, index, count);
        EXPECT_EQ(owned.begin, next);
        EXPECT_GE(owned.size(), extent / count);
        EXPECT_LE(owned.size(), extent / count + 1);
        next = owned.end;
      }
      EXPECT_EQ(next, extent);
    }
  }
}

TEST(PlanTest, EveryRankHasOneSeatInBothFactorings) {
  for (int world = 1; world <= 32; ++world) {
    for (int data = 1; data <= world; ++data) {
      for (int expert = 1; expert <= 8; ++expert) {
        if (!RefusalOf(world, 8, Exchange::kAllToAll, expert, data).empty()) continue;
        const ParallelPlan plan = MakePlan(world, 8, Exchange::kAllToAll, expert, data);
        EXPECT_EQ(plan.world(), world);
        for (int rank = 0; rank < world; ++rank) {
          const Seat seat = SeatOf(plan, rank);
          EXPECT_EQ(seat.world_rank, rank);
          EXPECT_EQ(seat.data * plan.tensor + seat.tensor, rank);
          EXPECT_EQ(seat.expert * plan.expert_tensor + seat.expert_tensor, rank);
          EXPECT_LT(seat.tensor, plan.tensor);
          EXPECT_LT(seat.expert_tensor, plan.expert_tensor);
        }
      }
    }
  }
}

TEST(PlanTest, EveryExpertHasOneGroup) {
  for (int experts = 1; experts <= 9; ++experts) {
    for (int groups = 1; groups <= std::min(experts, 8); ++groups) {
      const ParallelPlan plan = MakePlan(groups, experts, Exchange::kAllToAll, groups, 1);
      std::int64_t next = 0;
      for (int group = 0; group < groups; ++group) {
        const Range owned = OwnedExperts(plan, experts, group);
        EXPECT_EQ(owned.begin, next);
        EXPECT_FALSE(owned.empty());
        next = owned.end;
      }
      EXPECT_EQ(next, experts);
    }
  }
}

}  // namespace
}  // namespace jubal

#include "runtime/step_work.h"

#include <numeric>

#include <gtest/gtest.h>

#include "runtime/memory_plan.h"

namespace jubal {
namespace {

// Every rank of eight has whole blocks: no column is held twice.
constexpr SyntheticShape kShape{.hidden = 512,
                                .heads = 16,
                                .kv_heads = 8,
                                .head_dim = 64,
                                .experts = 4,
                                .top_k = 2,
                                .expert_hidden = 1024,
                                .layers = 2,
                                .vocabulary = 1024};
constexpr std::int64_t kVectors = (2 * 4 + 1) * 512 * 4;  // four norms a layer, and the last one
constexpr std::int64_t kRouters = 2 * 512 * 4 * 4;

StepWork WorkOf(const ModelSource& source, const ParallelPlan& plan, int rank) {
  return StepWork(source, plan, SeatOf(plan, rank), KvType::kInt16);
}

ParallelPlan Plan(int ranks, int expert_parallel = 1, int data_parallel = 1) {
  return MakePlan(ranks, 4, Exchange::kReplicated, expert_parallel, data_parallel);
}

/// A step of one token for each of two sequences.
GroupStep TwoTokens(std::int32_t position, std::vector<std::int32_t> logit_rows) {
  return {.tokens = {5, 700},
          .positions = {position, position},
          .sequences = {0, 1},
          .page_table = {0, 1, 2, 3},
          .max_pages = 2,
          .logit_rows = std::move(logit_rows)};
}

std::int64_t BytesOfAll(const ModelSource& source, const ParallelPlan& plan, const StepPlan& step,
                        const std::vector<std::uint8_t>& touched) {
  std::int64_t bytes = 0;
  for (int rank = 0; rank < plan.world(); ++rank) {
    bytes += WorkOf(source, plan, rank).Bytes(step, touched);
  }
  return bytes;
}

// A column too many or too few in the divisor makes the ratio to the machine's limit a fiction.
TEST(StepWorkTest, CountsWhatAStepTouches) {
  const ModelSource source = ModelSource::Synthetic(kShape, WeightType::kInt8);
  const StepWork work = WorkOf(source, Plan(1), 0);
  const std::vector<std::uint8_t> none(2 * 4, 0);
  const std::vector<std::uint8_t> two{1, 0, 0, 0, 0, 0, 1, 0};

  // int8: a byte for each weight, and by-input matrices have eight rows of scales, others one.
  const std::int64_t attention =
      2 * (512 * (1024 + 512 + 512) + 4 * 2048 + 1024 * 512 + 8 * 4 * 512);
  const std::int64_t expert = 2 * (512 * 1024 + 4 * 1024) + 1024 * 512 + 8 * 4 * 512;
  const std::int64_t output = 512 * 1024 + 4 * 1024;
  const std::int64_t embeddings = 2 * (512 + 4);
  const std::int64_t token_kv = 2 * 8 * (2 * 64 * 2 + 8);  // layers, heads, K and V with scales
  const std::int64_t kv = 2 * (40 + 1) * token_kv;         // 40 read, one written

  const StepPlan quiet{.groups = {TwoTokens(39, {})}};
  const StepPlan loud{.groups = {TwoTokens(39, {1})}};
  const std::int64_t norms_of_layers = kVectors - 512 * 4;
  EXPECT_EQ(work.Bytes(quiet, none), attention + kRouters + norms_of_layers + embeddings + kv);
  EXPECT_EQ(work.Bytes(quiet, two) - work.Bytes(quiet, none), 2 * expert);
  EXPECT_EQ(work.Bytes(loud, none) - work.Bytes(quiet, none), output + 512 * 4);
}

TEST(StepWorkTest, RanksTogetherTouchWhatOneDoes) {
  const ModelSource source = ModelSource::Synthetic(kShape, WeightType::kBf16);
  const StepPlan step{.groups = {TwoTokens(39, {0, 1})}};
  const std::vector<std::uint8_t> touched{1, 0, 1, 0, 0, 0, 1, 1};
  const std::int64_t alone = BytesOfAll(source, Plan(1), step, touched);
  for (const int ranks : {2, 4, 8}) {
    for (const int expert_parallel : {1, 2}) {
      // Norms and routers are on every rank.
      EXPECT_EQ(BytesOfAll(source, Plan(ranks, expert_parallel), step, touched),
                alone + (ranks - 1) * (kVectors + kRouters))
          << ranks << " ranks, expert_parallel " << expert_parallel;
    }
  }
}

// A copy of attention without requests reads nothing but its share of the others' experts.
TEST(StepWorkTest, AnIdleGroupTouchesExpertsOnly) {
  const ModelSource source = ModelSource::Synthetic(kShape, WeightType::kBf16);
  const StepPlan alone{.groups = {TwoTokens(39, {0, 1})}};
  const StepPlan beside{.groups = {GroupStep{}, TwoTokens(39, {0, 1})}};
  const std::vector<std::uint8_t> touched{1, 0, 1, 0, 0, 0, 1, 1};
  EXPECT_EQ(BytesOfAll(source, Plan(2, 2, 2), beside, touched),
            BytesOfAll(source, Plan(1), alone, touched));
}

TEST(StepWorkTest, CountsTwoOperationsForEachWeightOfEachToken) {
  const ModelSource source = ModelSource::Synthetic(kShape, WeightType::kInt8);
  const std::int64_t token = 2 * (512 * 2048 + 1024 * 512 + 512 * 4 + 2 * 3 * 512 * 1024);
  const std::int64_t output = 512 * 1024;
  const StepWork work = WorkOf(source, Plan(4, 2, 2), 3);
  EXPECT_EQ(work.Operations({.groups = {TwoTokens(39, {1}), TwoTokens(7, {0, 1})}}),
            2 * (4 * token + 3 * output));
}

}  // namespace
}  // namespace jubal

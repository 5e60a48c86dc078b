#include "runtime/model.h"

#include <gtest/gtest.h>

#include "runtime/model_source.h"

namespace jubal {
namespace {

ModelDescription OddModel() {
  ModelDescription m;
  m.layers = 2;
  m.hidden = 40;
  m.heads = 24;
  m.kv_heads = 8;
  m.head_dim = 5;  // 120 columns: chunks of 15 hold half heads
  m.experts = 5;
  m.top_k = 2;
  m.expert_hidden = 120;
  m.vocabulary = 1001;
  m.post_norms = true;
  m.tied_output = true;
  return m;
}

// A column that no rank computes is a wrong answer; an expert that two groups own counts twice.
TEST(LayoutOfTest, RanksTogetherHoldEveryPartOfEveryMatrix) {
  const ModelDescription model = OddModel();
  for (int world = 1; world <= 8; ++world) {
    for (int experts = 1; experts <= 5; ++experts) {
      if (world % experts != 0) continue;
      const ParallelPlan plan = MakePlan(world, 5, Exchange::kReplicated, experts, 1);
      for (const WeightSpec& spec : ListWeights(model)) {
        if (spec.n == 0 || spec.sharding == Sharding::kReplicated) continue;
        // Heads are computed by every rank whose chunks touch them; all else is held once.
        const bool shared =
            spec.sharding == Sharding::kByHead || spec.sharding == Sharding::kByKvHead;
        const std::int64_t stack = spec.expert_stack ? model.experts : 1;
        const bool by_input =
            spec.sharding == Sharding::kByHeadChunk || spec.sharding == Sharding::kByExpertInput;
        const std::int64_t parts = by_input ? kChunks : spec.n;
        std::vector<int> held(static_cast<std::size_t>(stack * parts));
        for (int rank = 0; rank < world; ++rank) {
          const MatrixLayout layout =
              LayoutOf(spec, {WeightType::kF32, 0}, model, plan, SeatOf(plan, rank));
          const Range range = by_input ? layout.chunks : layout.columns;
          for (std::int64_t e = layout.experts.begin; e < layout.experts.end; ++e) {
            for (std::int64_t i = range.begin; i < range.end; ++i) {
              ++held[static_cast<std::size_t>(e * parts + i)];
            }
          }
        }
        // A weight outside the experts is held by each expert group's ranks of one tensor index.
        for (const int count : held) {
          if (shared) {
            EXPECT_GE(count, 1) << spec.Name() << " on " << plan.ToString();
          } else {
            EXPECT_EQ(count, 1) << spec.Name() << " on " << plan.ToString();
          }
        }
      }
    }
  }
}

// A rank that lacks the KV head of one of its query heads would read another's keys.
TEST(OwnedHeadsTest, KvHeadsAreThoseOfTheQueryHeadsThatTheChunksTouch) {
  const ModelDescription model = OddModel();
  EXPECT_EQ(OwnedHeads(model, 0, 1), (Range{0, 24}));
  EXPECT_EQ(OwnedHeads(model, 1, 3), (Range{9, 18}));  // columns 45 … 90
  EXPECT_EQ(OwnedKvHeads(model, 1, 3), (Range{3, 6}));
  EXPECT_EQ(OwnedHeads(model, 1, 8), (Range{3, 6}));  // columns 15 … 30
  EXPECT_EQ(OwnedKvHeads(model, 1, 8), (Range{1, 2}));
}

// The list is what loader, budget and inspector walk: a weight that is not on it is never loaded.
TEST(ListWeightsTest, CountsGrok1sWeights) {
  const ModelSource grok = *ModelSource::Published("grok-1");
  EXPECT_EQ(grok.weights().size(), 2u + 64 * 12);
  std::int64_t parameters = 0;
  for (const WeightSpec& spec : grok.weights()) {
    parameters += spec.k * std::max<std::int64_t>(spec.n, 1) * (spec.expert_stack ? 8 : 1);
  }
  EXPECT_EQ(parameters, 315684820992);  // xai-org/grok-1, counted from its shapes
}

}  // namespace
}  // namespace jubal

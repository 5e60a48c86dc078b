#include "runtime/memory_plan.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

// A plan that forgets bytes lets a machine run out of memory after an hour of loading. Published
// file sizes of xAI's checkpoint, without pickle overhead, are 318,239 MB.
TEST(MemoryPlanTest, RealGrok1AddsUpOnEveryNumberOfRanks) {
  const ModelSource grok = *ModelSource::Published("grok-1");
  EXPECT_NEAR(static_cast<double>(grok.stored_bytes()), 318.2398e9, 0.0002e9);
  for (int ranks = 1; ranks <= 8; ++ranks) {
    const ParallelPlan plan = MakePlan(ranks, 8, Exchange::kReplicated, {}, 1);
    std::int64_t weights = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const MemoryPlan memory = PlanMemory(grok, plan, SeatOf(plan, rank), {});
      weights += memory.weight_bytes;
      std::int64_t lines = 0;
      for (const MemoryLine& line : memory.lines) lines += line.bytes;
      EXPECT_EQ(lines, memory.total());
      EXPECT_LE(memory.kv_bytes, ServingOptions{}.kv_memory);
      EXPECT_LE(memory.activation_bytes, 1'000'000'000);
    }
    // Scales are f32 in memory, routers and norms on every rank, heads on those that share a chunk.
    EXPECT_GE(weights, grok.stored_bytes());
    EXPECT_LE(weights, grok.stored_bytes() + 64 * ranks * 3'000'000 + 1'000'000'000) << ranks;
  }
}

// The arenas are taken from the plan: the decoder checks that not a byte is left or missing.
TEST(MemoryPlanTest, IsWhatTheDecoderTakes) {
  for (const int ranks : {1, 3, 8}) {
    OnEveryRank(GoldenDirectory() / "grok1-gqa6", {.ranks = ranks}, {},
                [](Decoder& decoder) { EXPECT_GT(decoder.memory().weight_bytes, 0); });
  }
}

// Memory for keys and values is the user's to bound, and must hold one page at least.
TEST(MemoryPlanTest, KvMemoryBoundsContextAndIsRefusedBelowAPage) {
  const ModelSource grok = *ModelSource::Published("grok-1");
  const ParallelPlan plan = MakePlan(8, 8, Exchange::kReplicated, {}, 1);
  ServingOptions options{.kv_memory = 100 << 20};
  const StepLimits limits = LimitsOf(grok.model(), plan, options);
  EXPECT_EQ(limits.context, limits.num_pages * kPageTokens);
  EXPECT_LT(limits.context, 8192);
  options.context = 64;
  EXPECT_EQ(LimitsOf(grok.model(), plan, options).context, 64);
  EXPECT_EQ(LimitsOf(grok.model(), plan, options).num_pages, 2 * options.max_running);
  options.kv_memory = 1000;
  try {
    LimitsOf(grok.model(), plan, options);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    EXPECT_NE(std::string(error.what()).find("--kv-memory"), std::string::npos);
  }
}

}  // namespace
}  // namespace jubal

#include "runtime/step_benchmark.h"

#include <mutex>
#include <vector>

#include <gtest/gtest.h>

#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

constexpr ServingOptions kOptions{.prefill_chunk = 16, .max_running = 40, .context = 128};

std::vector<StepResult> Measure(const TestPlan& plan, const std::vector<StepTest>& tests) {
  const std::filesystem::path model = GoldenDirectory() / "grok1-gqa6";
  std::vector<StepResult> results;
  OnEveryRank(model, plan, kOptions, [&](Decoder& decoder) {
    StepBenchmark benchmark(decoder, ModelSource::Open(model), kOptions);
    for (const StepTest& test : tests) {
      std::int64_t steps = 0;
      const StepResult result = benchmark.Run(test, [&](std::int64_t done, std::int64_t total) {
        EXPECT_EQ(done, ++steps);
        EXPECT_LE(done, total);
      });
      if (decoder.mesh().leader()) results.push_back(result);
    }
  });
  return results;
}

const std::vector<StepTest> kTests{
    {StepTest::Kind::kPrefill, /*tokens=*/40, /*batch=*/1, /*depth=*/0},
    {StepTest::Kind::kPrefill, /*tokens=*/16, /*batch=*/1, /*depth=*/70},
    {StepTest::Kind::kDecode, /*tokens=*/3, /*batch=*/1, /*depth=*/0},
    {StepTest::Kind::kDecode, /*tokens=*/3, /*batch=*/5, /*depth=*/70},
    {StepTest::Kind::kDecode, /*tokens=*/2, /*batch=*/40, /*depth=*/1}};  // two slices of logits

// Figures for plans whose results differ would compare different work.
TEST(StepBenchmarkTest, EveryPlanDrawsTheSameTokens) {
  const std::vector<StepResult> alone = Measure({}, kTests);
  for (const TestPlan& plan :
       {TestPlan{.ranks = 3}, TestPlan{.ranks = 4, .exchange = Exchange::kAllToAll},
        TestPlan{.ranks = 4, .expert_parallel = 2, .data_parallel = 2}}) {
    const std::vector<StepResult> shared = Measure(plan, kTests);
    ASSERT_EQ(shared.size(), kTests.size());
    for (std::size_t i = 0; i < kTests.size(); ++i) {
      EXPECT_EQ(shared[i].tokens_hash, alone[i].tokens_hash) << plan.ToString() << ", test " << i;
      // Each rank has the router and the norms, and perhaps a block that a neighbour has, too.
      EXPECT_GE(shared[i].bytes_per_step, alone[i].bytes_per_step);
    }
  }
}

TEST(StepBenchmarkTest, MoreWorkIsMoreBytes) {
  const std::vector<StepResult> results =
      Measure({}, {{StepTest::Kind::kDecode, /*tokens=*/2, /*batch=*/1, /*depth=*/0},
                   {StepTest::Kind::kDecode, /*tokens=*/2, /*batch=*/1, /*depth=*/100},
                   {StepTest::Kind::kDecode, /*tokens=*/2, /*batch=*/8, /*depth=*/0}});
  for (const StepResult& result : results) {
    EXPECT_GT(result.tokens_per_second, 0);
    EXPECT_GE(result.stddev, 0);
    EXPECT_GT(result.read_bandwidth, 0);
    EXPECT_GT(result.bandwidth_ratio, 0);
    EXPECT_GT(result.compute_ratio, 0);
  }
  EXPECT_GT(results[1].bytes_per_step, results[0].bytes_per_step);
  EXPECT_GT(results[2].bytes_per_step, results[0].bytes_per_step);
  EXPECT_NE(results[1].tokens_hash, results[0].tokens_hash);  // what comes before counts
}

}  // namespace
}  // namespace jubal

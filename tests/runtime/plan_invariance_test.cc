// The project's central promise: a request's tokens and log probabilities have the same bits for
// every number of ranks, plan, exchange, prompt chunk, batch and preemption.

#include <gtest/gtest.h>

#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

/// Greedy and drawn generations and a scored prompt, so that a difference anywhere shows.
std::vector<GenerationRequest> Requests(TokenId vocabulary) {
  std::vector<GenerationRequest> requests;
  for (int r = 0; r < 5; ++r) {
    GenerationRequest request;
    for (int i = 0; i < 3 + 9 * r; ++i) {
      request.prompt.push_back(1 + (i * 37 + r * 101 + i * i * 7) % (vocabulary - 1));
    }
    request.sampling.temperature = r % 2 == 0 ? 0.0f : 0.9f;
    request.sampling.top_p = r == 3 ? 0.9f : 1.0f;
    request.sampling.repetition_penalty = r == 1 ? 1.2f : 1.0f;
    request.sampling.seed = 1000u + static_cast<unsigned>(r);
    request.max_tokens = r == 4 ? 0 : 10;
    request.prompt_logprobs = r >= 3;
    requests.push_back(request);
  }
  return requests;
}

struct ModelCase {
  const char* name;
  TokenId vocabulary;
};

class PlanInvarianceTest : public testing::TestWithParam<ModelCase> {
 protected:
  std::filesystem::path Model() const { return GoldenDirectory() / GetParam().name; }
  const std::vector<GenerationRequest> requests_ = Requests(GetParam().vocabulary);
  const std::vector<Generated> expected_ = Generate(Model(), {}, {}, requests_);
};

// Two clusters would give one user two answers.
TEST_P(PlanInvarianceTest, EveryPlanGivesTheSameBits) {
  using enum Exchange;
  std::vector<TestPlan> plans;
  for (int ranks = 2; ranks <= 8; ++ranks) plans.push_back({.ranks = ranks});
  for (int ranks = 1; ranks <= 8; ++ranks) plans.push_back({.ranks = ranks, .exchange = kAllToAll});
  plans.push_back({.ranks = 2, .expert_parallel = 2});
  plans.push_back({.ranks = 6, .expert_parallel = 3});  // uneven experts, mixed
  plans.push_back({.ranks = 8, .expert_parallel = 8});
  plans.push_back({.ranks = 8, .expert_parallel = 2});
  plans.push_back({.ranks = 4, .exchange = kAllToAll, .expert_parallel = 1});
  plans.push_back({.ranks = 6, .exchange = kAllToAll, .expert_parallel = 2});
  plans.push_back({.ranks = 2, .data_parallel = 2});
  plans.push_back({.ranks = 4, .expert_parallel = 2, .data_parallel = 2});
  plans.push_back({.ranks = 6, .exchange = kAllToAll, .expert_parallel = 3, .data_parallel = 2});
  plans.push_back({.ranks = 8, .exchange = kAllToAll, .data_parallel = 4});
  for (const TestPlan& plan : plans) {
    EXPECT_TRUE(Generate(Model(), plan, {}, requests_) == expected_) << plan.ToString();
  }
}

// How a prompt is cut into steps must not show, on any plan.
TEST_P(PlanInvarianceTest, EveryPrefillChunkGivesTheSameBits) {
  for (const std::int64_t chunk : {1, 3, 8, 64}) {
    const ServingOptions options{.prefill_chunk = chunk, .max_running = 4};
    EXPECT_TRUE(Generate(Model(), {}, options, requests_) == expected_) << "chunk " << chunk;
  }
  const ServingOptions three{.prefill_chunk = 3, .max_running = 2};
  EXPECT_TRUE(Generate(Model(), {.ranks = 3, .exchange = Exchange::kAllToAll}, three, requests_) ==
              expected_);
}

// A user's answer must not depend on who else is served.
TEST_P(PlanInvarianceTest, ABatchOf37GivesTheBitsOfABatchOfOne) {
  std::vector<GenerationRequest> many;
  for (int i = 0; i < 37; ++i) {
    many.push_back(requests_[static_cast<std::size_t>(i) % requests_.size()]);
  }
  const std::vector<Generated> results =
      Generate(Model(), {}, {.prefill_chunk = 64, .max_running = 37}, many);
  for (std::size_t i = 0; i < many.size(); ++i) {
    EXPECT_TRUE(results[i] == expected_[i % requests_.size()]) << "request " << i;
    EXPECT_TRUE(Generate(Model(), {}, {}, {many[i]})[0] == results[i]) << "request " << i;
    if (i == requests_.size() - 1) i = many.size() - 2;  // alone: each kind, and the last
  }
}

// A server short of memory must be slower, not different.
TEST_P(PlanInvarianceTest, PreemptedRequestsResumeWithTheSameBits) {
  std::int64_t page_bytes = 0;
  OnEveryRank(Model(), {}, {}, [&](Decoder& decoder) {
    page_bytes = decoder.memory().kv_bytes / decoder.limits().num_pages;
  });
  // Four requests start on one or two pages each and grow to three, but there are five.
  const ServingOptions tight{.prefill_chunk = 8, .max_running = 8, .kv_memory = 5 * page_bytes};
  std::vector<GenerationRequest> growing(requests_.begin(), requests_.begin() + 4);
  for (GenerationRequest& request : growing) request.max_tokens = 60;
  std::int64_t preemptions = 0;
  std::vector<Generated> results(growing.size());
  OnEveryRank(Model(), {}, tight, [&](Decoder& decoder) {
    Engine engine(decoder, tight);
    for (std::size_t i = 0; i < growing.size(); ++i) {
      ASSERT_FALSE(engine.Submit(i, growing[i], RecordInto(results[i])));
    }
    engine.StopWhenIdle();
    engine.Run();
    preemptions = engine.preemptions();
  });
  EXPECT_GT(preemptions, 0);
  EXPECT_TRUE(results == Generate(Model(), {}, {}, growing));
}

INSTANTIATE_TEST_SUITE_P(Models, PlanInvarianceTest,
                         testing::Values(ModelCase{"grok1-12layers", 256},
                                         ModelCase{"grok1-gqa6", 512}, ModelCase{"mixtral", 160}),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace jubal

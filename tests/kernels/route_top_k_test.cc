#include "kernels/route_top_k.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

struct Routing {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Routing Route(const Floats& logits, std::int64_t top_k, bool renormalize = false) {
  const std::int64_t tokens = logits.view().size(0);
  Ints ids({tokens, top_k}, -7);
  Floats weights({tokens, top_k});
  RunSpecification(RouteTopK{ids.view(), weights.view(), logits.view(), renormalize});
  return {ids.values(), weights.values()};
}

// Breaks: tokens go to the wrong experts, or Grok-1's gates are rescaled.
TEST(RouteTopKTest, KeepsTheProbabilitiesOverAllExperts) {
  const Floats logits({1, 4}, {0.0f, std::log(2.0f), std::log(4.0f), std::log(3.0f)});
  const Routing routing = Route(logits, 2);
  EXPECT_EQ(routing.ids, (std::vector<std::int32_t>{2, 3}));
  EXPECT_NEAR(routing.weights[0], 0.4, 2e-7);
  EXPECT_NEAR(routing.weights[1], 0.3, 2e-7);
}

// Breaks: Mixtral's gates do not add up to one.
TEST(RouteTopKTest, RescalesWhenAsked) {
  const Floats logits({1, 4}, {0.0f, std::log(2.0f), std::log(4.0f), std::log(3.0f)});
  const Routing routing = Route(logits, 2, true);
  EXPECT_EQ(routing.ids, (std::vector<std::int32_t>{2, 3}));
  EXPECT_NEAR(routing.weights[0], 4.0 / 7.0, 2e-7);
  EXPECT_NEAR(routing.weights[1], 3.0 / 7.0, 2e-7);
}

// Breaks: ranks and machines choose differently on a tie.
TEST(RouteTopKTest, TiesGoToTheLowerId) {
  const Floats logits({3, 5}, {1, 1, 1, 1, 1,  //
                               0, 2, 1, 2, 2,  //
                               0, -0.0f, -1, -1, 0});
  EXPECT_EQ(Route(logits, 3).ids, (std::vector<std::int32_t>{0, 1, 2, 1, 3, 4, 0, 1, 4}));
}

// Breaks: damaged weights end a rank without a word, before their logits are looked at.
TEST(RouteTopKTest, TakesWhatIsNotANumber) {
  const Routing routing = Route(Floats({2, 3}, {NAN, 1, NAN, NAN, NAN, NAN}), 3);
  EXPECT_EQ(routing.ids, (std::vector<std::int32_t>{1, 0, 2, 0, 1, 2}));
  for (const float weight : routing.weights) EXPECT_TRUE(std::isnan(weight));
}

// Breaks: logits that differ by one bit tie once they are probabilities.
TEST(RouteTopKTest, TellsNeighbouringFloatsApart) {
  const Floats logits({1, 3}, {-1.0f, std::nextafter(-1.0f, 0.0f), 50.0f});
  EXPECT_EQ(Route(logits, 2).ids, (std::vector<std::int32_t>{2, 1}));
}

// Breaks: large logits overflow the exponential.
TEST(RouteTopKTest, TakesLargeLogits) {
  const Floats logits({1, 3}, {1000.0f, -1000.0f, 1000.0f});
  const Routing routing = Route(logits, 3);
  EXPECT_EQ(routing.ids, (std::vector<std::int32_t>{0, 2, 1}));
  EXPECT_EQ(routing.weights, (std::vector<float>{0.5f, 0.5f, 0.0f}));
}

// Breaks: choosing all experts misses some, or the weights do not add up.
TEST(RouteTopKTest, CanChooseAll) {
  const Floats logits = RandomFloats({50, 64}, 1, 3.0f);
  const Routing routing = Route(logits, 64);
  for (std::size_t t = 0; t < 50; ++t) {
    std::vector<bool> chosen(64);
    double sum = 0.0;
    for (std::size_t j = 0; j < 64; ++j) {
      chosen[static_cast<std::size_t>(routing.ids[t * 64 + j])] = true;
      sum += routing.weights[t * 64 + j];
      if (j > 0) {
        EXPECT_GE(routing.weights[t * 64 + j - 1], routing.weights[t * 64 + j]);
      }
    }
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), true), 64);
    EXPECT_NEAR(sum, 1.0, 64 * 6e-8);
  }
}

// Breaks: an idle step crashes.
TEST(RouteTopKTest, TakesNoTokens) { EXPECT_TRUE(Route(Floats({0, 8}), 2).ids.empty()); }

}  // namespace
}  // namespace jubal

#include "kernels/combine_experts.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: a token gets other experts' outputs or weights.
TEST(CombineExpertsTest, WeighsTheRowsOfEachToken) {
  const Floats y({3, 2}, {1, 2, 10, 20, 100, 200});
  const Ints row_of({2, 2}, {2, 0, 1, 2});
  const Ints ids({2, 2}, {5, 1, 0, 5});
  const Floats weights({2, 2}, {0.5f, 0.25f, 2.0f, 0.125f});
  Floats out({2, 2}, 99.0f);
  RunSpecification(CombineExperts{out.view(), y.view(), row_of.view(), ids.view(), weights.view()});
  EXPECT_EQ(out.values(), (std::vector<float>{50.25f, 100.5f, 32.5f, 65.0f}));
}

// Breaks: the bits depend on the order in which the router named the experts, and so on the plan.
TEST(CombineExpertsTest, AddsInAscendingOrderOfExpertId) {
  const float large = 16777216.0f;
  const Floats y({3, 1}, {large, 1.0f, -large});
  const Ints row_of({2, 3}, {0, 1, 2, 0, 1, 2});
  // Token 0 adds 2²⁴, −2²⁴, 1; token 1 adds 1, 2²⁴, −2²⁴ and loses the 1.
  const Ints ids({2, 3}, {0, 7, 3, 4, 2, 6});
  const Floats weights({2, 3}, 1.0f);
  Floats out({2, 1});
  RunSpecification(CombineExperts{out.view(), y.view(), row_of.view(), ids.view(), weights.view()});
  EXPECT_EQ(out.values(), (std::vector<float>{1.0f, 0.0f}));
}

// Breaks: large prefill steps, whose rows are divided among threads.
TEST(CombineExpertsTest, TakesManyTokens) {
  const Floats y = RandomFloats({100, 33}, 1);
  Ints row_of({100, 1});
  for (std::int32_t t = 0; t < 100; ++t) row_of[t] = 99 - t;
  const Ints ids({100, 1});
  const Floats weights({100, 1}, 2.0f);
  Floats out({100, 33});
  RunSpecification(CombineExperts{out.view(), y.view(), row_of.view(), ids.view(), weights.view()});
  for (std::int64_t t = 0; t < 100; ++t) {
    for (std::int64_t i = 0; i < 33; ++i) {
      ASSERT_EQ(out[t * 33 + i], 2.0f * y[(99 - t) * 33 + i]);
    }
  }
}

// Breaks: an idle step crashes.
TEST(CombineExpertsTest, TakesNoTokens) {
  Floats out({0, 4});
  const Ints none({0, 2});
  const Floats weights({0, 2});
  RunSpecification(
      CombineExperts{out.view(), out.view(), none.view(), none.view(), weights.view()});
}

}  // namespace
}  // namespace jubal

#include "kernels/route_top_k.h"

#include <cmath>
#include <limits>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class RouteTopKGpuTest : public GpuTest {
 protected:
  void ExpectTheSpecification(const Floats& logits, std::int64_t top_k, bool renormalize) {
    const std::int64_t tokens = logits.view().size(0);
    Ints ids({tokens, top_k});
    Floats weights({tokens, top_k});
    RunSpecification(RouteTopK{ids.view(), weights.view(), logits.view(), renormalize});
    // A row further than asked for: it stays as it is.
    const TensorView ids_there = Allocate(DType::kI32, {tokens + 1, top_k});
    const TensorView weights_there = Allocate(DType::kF32, {tokens + 1, top_k});
    Launch(RouteTopK{ids_there.Rows(0, tokens), weights_there.Rows(0, tokens), OnGpu(logits),
                     renormalize});
    ids.values().resize(ids.values().size() + static_cast<std::size_t>(top_k), -1);
    EXPECT_EQ(ReadBack<std::int32_t>(ids_there), ids.values());
    const std::vector<float> there = ReadBack<float>(weights_there);
    for (std::size_t i = 0; i < there.size(); ++i) {
      const float expected = i < weights.values().size() ? weights.values()[i] : NAN;
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(there[i])) << i;
      } else {
        EXPECT_EQ(there[i], expected) << i;
      }
    }
  }
};
INSTANTIATE_GPU_TEST(RouteTopKGpuTest);

// Breaks: tokens go to other experts, or with other weights, on a GPU than on a CPU.
TEST_P(RouteTopKGpuTest, HasTheBitsOfTheSpecification) {
  for (const bool renormalize : {false, true}) {
    for (const std::int64_t experts : {1, 8, 31, 64, 100}) {
      for (const std::int64_t tokens : {0, 1, 4, 9}) {
        const Floats logits = RandomFloats({tokens, experts}, 1, 3.0f);
        for (const std::int64_t top_k : {std::int64_t{1}, std::int64_t{2}, experts}) {
          if (top_k <= experts) ExpectTheSpecification(logits, top_k, renormalize);
        }
      }
    }
  }
}

// Breaks: ties, and logits of a damaged model, are ordered differently.
TEST_P(RouteTopKGpuTest, OrdersTiesAndWhatIsNotANumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  ExpectTheSpecification(Floats({5, 4}, {1,    1,          1,         1,    //
                                         0,    -0.0f,      -1,        0,    //
                                         NAN,  1,          NAN,       -1,   //
                                         NAN,  NAN,        NAN,       NAN,  //
                                         1000, -kInfinity, kInfinity, kInfinity}),
                         4, false);
  Floats wide({2, 70}, 2.0f);
  wide[3] = NAN;
  wide[69] = wide[40] = 5.0f;
  ExpectTheSpecification(wide, 9, false);
}

}  // namespace
}  // namespace jubal

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

// Breaks: all tokens but the first are routed by other columns of a wider buffer, or lose what was
// written for them.
TEST_P(RouteTopKGpuTest, TakesRowsOfWiderBuffers) {
  const Floats wide = RandomFloats({7, 40}, 2, 3.0f);
  const ConstTensorView logits = wide.view().Columns(5, 8);
  Ints ids({7, 2});
  Floats weights({7, 2});
  RunSpecification(RouteTopK{ids.view(), weights.view(), logits});
  const TensorView ids_there = Allocate(DType::kI32, {7, 6});
  const TensorView weights_there = Allocate(DType::kF32, {7, 5});
  Launch(
      RouteTopK{ids_there.Columns(1, 2), weights_there.Columns(3, 2), OnGpu(wide).Columns(5, 8)});
  const std::vector<std::int32_t> all_ids = ReadBack<std::int32_t>(ids_there);
  const std::vector<float> all_weights = ReadBack<float>(weights_there);
  for (std::int64_t t = 0; t < 7; ++t) {
    for (std::int64_t j = 0; j < 2; ++j) {
      EXPECT_EQ(all_ids[static_cast<std::size_t>(t * 6 + 1 + j)], ids[t * 2 + j]) << t;
      EXPECT_EQ(all_weights[static_cast<std::size_t>(t * 5 + 3 + j)], weights[t * 2 + j]) << t;
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

#include "kernels/combine_experts.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class CombineExpertsGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(CombineExpertsGpuTest);

// Breaks: tokens get other experts' outputs or weights, or sums whose order follows the router.
TEST_P(CombineExpertsGpuTest, HasTheBitsOfTheSpecification) {
  for (const std::int64_t top_k : {1, 2, 5, 64}) {
    for (const std::int64_t tokens : {0, 1, 6}) {
      for (const std::int64_t hidden : {1, 33, 1030}) {
        const std::int64_t rows = tokens * top_k + 1;
        const Floats y = RandomFloats({rows, hidden + 2}, 1);
        const Floats weights = RandomFloats({tokens, top_k}, 2);
        Ints row_of({tokens, top_k});
        std::iota(row_of.values().begin(), row_of.values().end(), 0);
        std::shuffle(row_of.values().begin(), row_of.values().end(), std::mt19937(3));
        Ints ids({tokens, top_k});
        for (std::int64_t t = 0; t < tokens; ++t) {
          const auto first = ids.values().begin() + t * top_k;
          std::iota(first, first + top_k, 3);
          std::shuffle(first, first + top_k, std::mt19937(static_cast<unsigned>(t)));
        }
        Floats expected({tokens, hidden});
        RunSpecification(CombineExperts{expected.view(), y.view().Columns(1, hidden), row_of.view(),
                                        ids.view(), weights.view()});
        const TensorView out = Allocate(DType::kF32, {tokens, hidden});
        Launch(CombineExperts{out, OnGpu(y).Columns(1, hidden), OnGpu(row_of), OnGpu(ids),
                              OnGpu(weights)});
        EXPECT_EQ(ReadBack<float>(out), expected.values())
            << tokens << " × " << hidden << " top " << top_k;
      }
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/add.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class AddGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(AddGpuTest);

// Breaks: the residual stream, in steps of any size, or columns of a wider tensor.
TEST_P(AddGpuTest, HasTheBitsOfTheSpecification) {
  for (const std::int64_t hidden : {1, 255, 256, 1025}) {
    for (const std::int64_t tokens : {0, 1, 5}) {
      Floats into = RandomFloats({tokens, hidden + 3}, 1);
      const Floats x = RandomFloats({tokens, hidden + 7}, 2);
      const TensorView into_there = OnGpu(into);
      Launch(Add{into_there.Columns(2, hidden), OnGpu(x).Columns(5, hidden)});
      RunSpecification(Add{into.view().Columns(2, hidden), x.view().Columns(5, hidden)});
      EXPECT_EQ(ReadBack<float>(into_there), into.values()) << hidden << " × " << tokens;
    }
  }
}

}  // namespace
}  // namespace jubal

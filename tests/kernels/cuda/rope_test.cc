#include "kernels/rope.h"

#include <cmath>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class RopeGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(RopeGpuTest);

// Breaks: queries and keys turn differently on GPUs and CPUs, or their neighbours turn too.
TEST_P(RopeGpuTest, HasTheBitsOfTheSpecification) {
  for (const std::int64_t half : {1, 5, 64, 72}) {
    for (const std::int64_t count : {1, 4, 5}) {
      for (const std::int64_t tokens : {0, 1, 7}) {
        const std::int64_t columns = count * 2 * half;
        Floats heads = RandomFloats({tokens, columns + 4}, 1);
        const Ints seven({7}, {0, 1, 100, 8191, 131071, 7, 2000000000});
        const Ints positions({tokens}, {seven.values().begin(), seven.values().begin() + tokens});
        Floats frequencies({half});
        for (std::int64_t i = 0; i < half; ++i) {
          frequencies[i] =
              static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / double(half)));
        }
        const TensorView there = OnGpu(heads);
        Launch(Rope{there.Columns(3, columns), OnGpu(positions), OnGpu(frequencies)});
        RunSpecification(
            Rope{heads.view().Columns(3, columns), positions.view(), frequencies.view()});
        EXPECT_EQ(ReadBack<float>(there), heads.values())
            << tokens << " tokens of " << count << " heads of " << 2 * half;
      }
    }
  }
}

}  // namespace
}  // namespace jubal

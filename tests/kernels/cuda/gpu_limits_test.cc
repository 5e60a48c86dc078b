#include "kernels/cuda/gpu_limits.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class GpuLimitsTest : public GpuTest {};
INSTANTIATE_GPU_TEST(GpuLimitsTest);

// Breaks: benchmarks divide by nothing.
TEST_P(GpuLimitsTest, AreMeasuredForEveryType) {
  const TensorView memory = Allocate(DType::kU8, {100 * 16});
  EXPECT_GT(MeasureGpuReadBandwidth(memory, stream()), 0.0);
  EXPECT_GT(MeasureGpuCopyBandwidth(memory, stream()), 0.0);
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kInt8, WeightType::kInt4}) {
    EXPECT_GT(MeasureGpuPeak(type, stream()), 0.0);
  }
}

// Breaks: half of what was copied lies elsewhere.
TEST_P(GpuLimitsTest, CopyTheFirstHalfToTheSecond) {
  const Floats x = RandomFloats({10}, 1);
  const TensorView memory = OnGpu(x);
  MeasureGpuCopyBandwidth(memory, stream());
  const std::vector<float> copied = ReadBack<float>(memory);
  for (std::int64_t i = 0; i < 10; ++i) EXPECT_EQ(copied[static_cast<std::size_t>(i)], x[i % 5]);
}

}  // namespace
}  // namespace jubal

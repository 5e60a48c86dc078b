#include "kernels/fill_random.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class FillRandomGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(FillRandomGpuTest);

// Breaks: bench on GPUs would measure another model than on CPUs.
TEST_P(FillRandomGpuTest, GivesTheSameBytes) {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kInt8, WeightType::kInt4}) {
    const std::int64_t group_rows = HasScales(type) ? 50 : 0;
    const MatrixLayout columns{.type = type,
                               .split = Split::kByOutput,
                               .k = 150,
                               .n = 333,
                               .group_rows = group_rows,
                               .experts = {1, 3},
                               .columns = {70, 330}};
    MatrixLayout rows = columns;
    rows.split = Split::kByInput;
    rows.chunks = {2, 5};
    rows.columns = {0, rows.n};
    for (const MatrixLayout& layout : {columns, rows}) {
      HostTensor<std::uint8_t> data({layout.WeightBytes()});
      Floats scales({layout.ScaleBytes() / 4});
      const bool scaled = HasScales(type);
      RunOnCpu(FillRandom{.data = data.view(),
                          .scales = scaled ? scales.view() : TensorView{},
                          .layout = layout,
                          .key = 7});
      const TensorView gpu_data = Allocate(DType::kU8, data.view().shape());
      const TensorView gpu_scales = Allocate(DType::kF32, scales.view().shape());
      Launch(FillRandom{.data = gpu_data,
                        .scales = scaled ? gpu_scales : TensorView{},
                        .layout = layout,
                        .key = 7});
      EXPECT_EQ(ReadBack<std::uint8_t>(gpu_data), data.values()) << NameOf(type);
      if (scaled) {
        EXPECT_EQ(ReadBack<float>(gpu_scales), scales.values()) << NameOf(type);
      }
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/rms_norm.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class RmsNormGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(RmsNormGpuTest);

// Breaks: hidden states differ between GPUs and CPUs. The sums of squares are taken in another
// order, in double: that moves what is rounded to float by 2⁻²⁹ of its last place.
TEST_P(RmsNormGpuTest, AgreesWithTheSpecification) {
  for (const std::int64_t hidden : {1, 31, 256, 257, 6144}) {
    for (const std::int64_t tokens : {0, 1, 9}) {
      const Floats x = RandomFloats({tokens, hidden}, 1, 5.0f);
      const Floats scale = RandomFloats({hidden}, 2);
      Floats expected({tokens, hidden});
      RunSpecification(RmsNorm{expected.view(), x.view(), scale.view(), 1e-5f});
      const TensorView out = Allocate(DType::kF32, {tokens, hidden});
      Launch(RmsNorm{.out = out, .x = OnGpu(x), .scale = OnGpu(scale), .epsilon = 1e-5f});
      EXPECT_EQ(ReadBack<float>(out), expected.values()) << hidden << " × " << tokens;
    }
  }
}

// Breaks: norms that the decoder runs in place, and rows of wider buffers.
TEST_P(RmsNormGpuTest, WorksInPlaceAndOnStridedRows) {
  const Floats wide = RandomFloats({5, 100}, 3);
  const Floats scale = RandomFloats({60}, 4);
  Floats expected({5, 60});
  RunSpecification(RmsNorm{expected.view(), wide.view().Columns(20, 60), scale.view()});
  const TensorView x = OnGpu(wide);
  Launch(RmsNorm{.out = x.Columns(20, 60), .x = x.Columns(20, 60), .scale = OnGpu(scale)});
  const std::vector<float> all = ReadBack<float>(x);
  for (std::int64_t t = 0; t < 5; ++t) {
    for (std::int64_t i = 0; i < 100; ++i) {
      const bool inside = i >= 20 && i < 80;
      ASSERT_EQ(all[static_cast<std::size_t>(t * 100 + i)],
                inside ? expected[t * 60 + i - 20] : wide[t * 100 + i]);
    }
  }
}

}  // namespace
}  // namespace jubal

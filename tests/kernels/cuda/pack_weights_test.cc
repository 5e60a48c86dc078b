#include "kernels/pack_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/weight_slabs.h"

namespace jubal {
namespace {

class PackWeightsGpuTest : public GpuTest {
 protected:
  /// A copy of the bytes, one byte into memory of the GPU, as files align nothing.
  const std::byte* BytesOnGpu(const std::byte* from, std::int64_t size) {
    HostTensor<std::uint8_t> host({1 + size});
    std::memcpy(host.values().data() + 1, from, static_cast<std::size_t>(size));
    return OnGpu(host).raw() + 1;
  }

  /// Copies the slab alone to a buffer on the GPU, as a loader does.
  void Stage(UnpackedSlab& slab, std::int64_t element) {
    const std::int64_t bytes =
        (slab.rows.size() - 1) * slab.row_bytes + slab.columns.size() * element;
    CHECK_LE(1 + bytes, staging_.bytes());
    stream().queue().Fill(staging_.raw(), 0xff, staging_.bytes());
    stream().queue().Copy(staging_.raw() + 1, bytes, slab.data, bytes, bytes, 1);
    slab.data = staging_.raw() + 1;
  }

 private:
  TensorView staging_ = Allocate(DType::kU8, {1 << 18});
};
INSTANTIATE_GPU_TEST(PackWeightsGpuTest);

// Breaks: a model has other weights on a GPU than on CPUs.
TEST_P(PackWeightsGpuTest, SlabsGiveWhatPackMatrixGives) {
  ForEachSlabCase([&](const SlabCase& c) {
    SCOPED_TRACE(std::string(NameOf(c.layout.type)) + " by slabs of " + std::to_string(c.max_rows));
    const MatrixLayout& layout = c.layout;
    const std::int64_t element = HasScales(layout.type) ? 1 : 4 / RowsPerStep(layout.type);
    const PackedShare expected(c.matrix, layout);
    const TensorView data = Allocate(DType::kU8, {layout.WeightBytes()});
    const TensorView scales = Allocate(DType::kF32, {layout.ScaleBytes() / 4});
    const TensorView broken = OnGpu(Ints({1}, 0));
    for (std::int64_t expert = 0; expert < layout.num_experts(); ++expert) {
      const UnpackedMatrix source = c.matrix.Unpacked(layout.experts.begin + expert);
      for (UnpackedSlab slab : SlabsOf(c, source.data)) {
        Stage(slab, element);
        Launch(PackWeights{data, layout, expert, slab, broken});
      }
      if (!HasScales(layout.type)) continue;
      const std::int64_t row = layout.n * 2;
      const std::byte* of_groups = BytesOnGpu(source.scales, c.matrix.Groups() * row);
      for (std::int64_t group = c.matrix.Groups(); group-- > 0;) {
        Launch(PackScales{scales, layout, expert, of_groups + group * row, Range{group, group + 1},
                          broken});
      }
    }
    const std::vector<std::uint8_t> bytes = ReadBack<std::uint8_t>(data);
    const std::vector<float> floats = ReadBack<float>(scales);
    const auto* wanted = reinterpret_cast<const std::uint8_t*>(expected.matrix().data);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), wanted));
    EXPECT_TRUE(std::equal(floats.begin(), floats.end(), expected.matrix().scales));
    EXPECT_EQ(ReadBack<std::int32_t>(broken)[0], 0);
  });
}

// Breaks: a damaged checkpoint is served, or a good one refused.
TEST_P(PackWeightsGpuTest, ReportsWhatIsNotFinite) {
  for (const float value : {NAN, -INFINITY, 3e38f}) {
    const auto bf16 = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    std::vector<std::uint16_t> stored(3 * 70);
    stored[2 * 70 + 69] = bf16;
    const std::byte* source = BytesOnGpu(reinterpret_cast<const std::byte*>(stored.data()), 420);
    const std::int32_t expected = std::isfinite(value) ? 0 : 1;

    const MatrixLayout weights{.type = WeightType::kBf16, .k = 3, .n = 70, .columns = {0, 70}};
    const TensorView of_weights = OnGpu(Ints({1}, 0));
    Launch(PackWeights{
        .data = Allocate(DType::kU8, {weights.WeightBytes()}),
        .layout = weights,
        .source = {.data = source, .rows = {0, 3}, .columns = {0, 70}, .row_bytes = 140},
        .broken = of_weights});
    EXPECT_EQ(ReadBack<std::int32_t>(of_weights)[0], expected);

    const MatrixLayout integers{
        .type = WeightType::kInt8, .k = 12, .n = 70, .group_rows = 4, .columns = {0, 70}};
    const TensorView of_scales = OnGpu(Ints({1}, 0));
    Launch(PackScales{.scales = Allocate(DType::kF32, {integers.ScaleBytes() / 4}),
                      .layout = integers,
                      .source = source,
                      .groups = {0, 3},
                      .broken = of_scales});
    EXPECT_EQ(ReadBack<std::int32_t>(of_scales)[0], expected);
  }
}

}  // namespace
}  // namespace jubal

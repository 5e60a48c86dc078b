#include "kernels/pack_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"
#include "tests/kernels/weight_slabs.h"

namespace jubal {
namespace {

// Breaks: a model that is packed piece by piece has other weights than one that is packed at once.
TEST(PackWeightsTest, SlabsGiveWhatPackMatrixGives) {
  ForEachSlabCase([](const SlabCase& c) {
    SCOPED_TRACE(std::string(NameOf(c.layout.type)) + " by slabs of " + std::to_string(c.max_rows));
    const PackedShare expected(c.matrix, c.layout);
    HostTensor<std::uint8_t> data({c.layout.WeightBytes()}, 0x55);
    HostTensor<float> scales({c.layout.ScaleBytes() / 4}, NAN);
    Ints broken({1}, 0);
    for (std::int64_t expert = 0; expert < c.layout.num_experts(); ++expert) {
      const UnpackedMatrix source = c.matrix.Unpacked(c.layout.experts.begin + expert);
      for (const UnpackedSlab& slab : SlabsOf(c, source.data)) {
        RunSpecification(PackWeights{data.view(), c.layout, expert, slab, broken.view()});
      }
      if (!HasScales(c.layout.type)) continue;
      for (std::int64_t group = c.matrix.Groups(); group-- > 0;) {
        RunSpecification(PackScales{scales.view(), c.layout, expert,
                                    source.scales + group * c.layout.n * 2, Range{group, group + 1},
                                    broken.view()});
      }
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(expected.matrix().data);
    EXPECT_TRUE(std::equal(data.values().begin(), data.values().end(), bytes));
    EXPECT_TRUE(
        std::equal(scales.values().begin(), scales.values().end(), expected.matrix().scales));
    EXPECT_EQ(broken[0], 0);
  });
}

// Breaks: a loader stages many small slabs, or more than its buffer holds.
TEST(PackWeightsTest, SlabsAreAsLongAsTheyMayBe) {
  const RandomMatrix matrix(WeightType::kInt8, 1030, 70, 8);  // groups of 129, chunks of 128 or 129
  const MatrixLayout layout = matrix.LayoutByInput({0, 8});
  for (std::int64_t begin = 0; begin < 1030;) {
    const std::int64_t end = SlabEnd(layout, false, begin, 50);
    EXPECT_LE(end, begin + 50);
    EXPECT_TRUE(end > begin + 50 - 4 || end == 1030);
    begin = end;
  }
  EXPECT_EQ(SlabEnd(layout, false, 0, 5000), 1030);
  EXPECT_EQ(SlabEnd(layout, true, 3, 50), 53);
  EXPECT_EQ(SlabEnd(layout, true, 3, 5000), 70);
}

// Breaks: a damaged checkpoint is served, or a good one refused.
TEST(PackWeightsTest, ReportsWhatIsNotFinite) {
  for (const WeightType type : {WeightType::kF32, WeightType::kBf16}) {
    const std::int64_t element = 4 / RowsPerStep(type);
    for (const float value : {NAN, INFINITY, -INFINITY, 3e38f}) {
      std::vector<std::byte> stored(static_cast<std::size_t>(1 + 6 * 70 * element));
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
      const std::uint32_t kept = type == WeightType::kF32 ? bits : bits >> 16;
      std::memcpy(stored.data() + 1 + (5 * 70 + 67) * element, &kept,
                  static_cast<std::size_t>(element));
      for (const Range owned : {Range{64, 70}, Range{0, 64}}) {
        const MatrixLayout layout{.type = type, .k = 6, .n = 70, .columns = owned};
        HostTensor<std::uint8_t> data({layout.WeightBytes()});
        Ints broken({1}, 0);
        RunSpecification(PackWeights{.data = data.view(),
                                     .layout = layout,
                                     .source = {.data = stored.data() + 1,
                                                .rows = {0, 6},
                                                .columns = {0, 70},
                                                .row_bytes = 70 * element},
                                     .broken = broken.view()});
        EXPECT_EQ(broken[0], !std::isfinite(value) && owned.begin == 64 ? 1 : 0);
      }
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/fill_random.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

using Bytes = HostTensor<std::uint8_t>;

MatrixLayout Stack(WeightType type) {
  return {.type = type,
          .split = Split::kByOutput,
          .k = 256,
          .n = 200,
          .group_rows = HasScales(type) ? 64 : 0,
          .experts = {0, 3},
          .columns = {0, 200}};
}

Bytes Filled(const MatrixLayout& layout, std::int64_t key) {
  Bytes data({layout.WeightBytes()});
  Floats scales({layout.ScaleBytes() / 4});
  RunSpecification(FillRandom{.data = data.view(),
                              .scales = HasScales(layout.type) ? scales.view() : TensorView{},
                              .layout = layout,
                              .key = key});
  return data;
}

// Breaks: ranks measure different models, or one whose layers are all alike.
TEST(FillRandomTest, APartHasTheBytesOfTheWhole) {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kInt8, WeightType::kInt4}) {
    const MatrixLayout whole = Stack(type);
    MatrixLayout part = whole;
    part.experts = {1, 2};
    part.columns = {64, 130};  // two of the four blocks
    const Bytes all = Filled(whole, 7);
    const Bytes some = Filled(part, 7);
    std::int64_t place = 0;
    for (const Range& range : DataRanges(whole, part)) {
      EXPECT_EQ(std::memcmp(all.values().data() + range.begin, some.values().data() + place,
                            static_cast<std::size_t>(range.size())),
                0)
          << NameOf(type);
      place += range.size();
    }
    EXPECT_EQ(place, part.WeightBytes());
    EXPECT_NE(Filled(whole, 8).values(), all.values()) << NameOf(type);
  }
}

// Breaks: sums over the width of a model grow until they overflow, or vanish.
TEST(FillRandomTest, HasTheVarianceOfOneOverK) {
  const MatrixLayout layout = Stack(WeightType::kF32);
  const Bytes data = Filled(layout, 7);
  double squares = 0.0;
  const std::int64_t count = layout.WeightBytes() / 4;
  for (std::int64_t i = 0; i < count; ++i) {
    float weight;
    std::memcpy(&weight, data.values().data() + i * 4, sizeof(weight));
    squares += static_cast<double>(weight) * weight;
  }
  // 196,608 numbers of one variance: its estimate is within 1 % with room to spare.
  EXPECT_NEAR(squares / static_cast<double>(count) * static_cast<double>(layout.k), 1.0, 0.02);
}

}  // namespace
}  // namespace jubal

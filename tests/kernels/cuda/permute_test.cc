#include "kernels/permute.h"

#include <numeric>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class GroupByExpertGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(GroupByExpertGpuTest);

// Breaks: experts compute other tokens' rows, or in an order that depends on how threads run.
TEST_P(GroupByExpertGpuTest, EqualsTheSpecification) {
  for (const Range experts : {Range{0, 8}, Range{3, 7}, Range{5, 5}, Range{2, 80}}) {
    for (const std::int64_t top_k : {1, 2, 3}) {
      for (const std::int64_t tokens : {0, 1, 31, 32, 400}) {
        Ints wide({tokens, top_k + 1});  // of which the last top_k columns are the operand
        std::mt19937 random(7);
        std::uniform_int_distribution<std::int32_t> any(-1, experts.size() > 8 ? 90 : 8);
        for (std::int32_t& id : wide.values()) id = any(random);
        Ints offsets({experts.size() + 1});
        Ints row_of({tokens, top_k});
        Ints token_of({tokens * top_k}, -1);
        RunSpecification(GroupByExpert{offsets.view(), row_of.view(), token_of.view(),
                                       wide.view().Columns(1, top_k), experts});
        const TensorView offsets_there = Allocate(DType::kI32, offsets.view().shape());
        const TensorView row_of_there = Allocate(DType::kI32, row_of.view().shape());
        const TensorView token_of_there = Allocate(DType::kI32, token_of.view().shape());
        Launch(GroupByExpert{offsets_there, row_of_there, token_of_there,
                             OnGpu(wide).Columns(1, top_k), experts});
        EXPECT_EQ(ReadBack<std::int32_t>(offsets_there), offsets.values());
        EXPECT_EQ(ReadBack<std::int32_t>(row_of_there), row_of.values());
        EXPECT_EQ(ReadBack<std::int32_t>(token_of_there), token_of.values())
            << tokens << " tokens, top " << top_k << ", experts from " << experts.begin;
      }
    }
  }
}

class GatherRowsGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(GatherRowsGpuTest);

// Breaks: experts get other rows than the tokens that chose them, for some number of columns and
// alignment; or rows beyond the count are read, whose index means nothing.
TEST_P(GatherRowsGpuTest, EqualsTheSpecification) {
  const HostTensor<std::uint8_t> x = [] {
    HostTensor<std::uint8_t> bytes({5, 8192});
    std::iota(bytes.values().begin(), bytes.values().end(), std::uint8_t{0});
    for (std::int64_t i = 0; i < 5 * 8192; i += 8192)
      bytes[i + 17] = static_cast<std::uint8_t>(i >> 13);
    return bytes;
  }();
  const Ints index({6}, {4, 0, 4, 1, 1 << 30, -5});
  for (const std::int64_t columns : {1, 16, 20, 4352, 8100}) {
    for (const std::int64_t first : {0, 16, 17, 20}) {
      for (const std::int32_t rows : {0, 1, 4}) {
        const Ints count({1}, {rows});
        HostTensor<std::uint8_t> expected({5, columns}, 0xff);
        RunSpecification(GatherRows{expected.view(), x.view().Columns(first, columns), index.view(),
                                    count.view()});
        const TensorView out = Allocate(DType::kU8, {5, columns});
        Launch(GatherRows{out, OnGpu(x).Columns(first, columns), OnGpu(index), OnGpu(count)});
        EXPECT_EQ(ReadBack<std::uint8_t>(out), expected.values())
            << rows << " rows of " << columns << " from " << first;
      }
    }
  }
}

}  // namespace
}  // namespace jubal

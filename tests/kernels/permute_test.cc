#include "kernels/permute.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

struct Groups {
  explicit Groups(const Ints& topk_ids, Range experts)
      : offsets({experts.size() + 1}, 99),
        row_of(topk_ids.view().shape(), 99),
        token_of({topk_ids.view().shape().elements()}, 99) {
    RunSpecification(
        GroupByExpert{offsets.view(), row_of.view(), token_of.view(), topk_ids.view(), experts});
  }

  Ints offsets;
  Ints row_of;
  Ints token_of;
};

// Breaks: experts compute other tokens' rows.
TEST(GroupByExpertTest, OrdersByExpertThenToken) {
  const Ints ids({4, 2}, {2, 0, 0, 1, 3, 2, 1, 0});
  const Groups groups(ids, {0, 4});
  EXPECT_EQ(groups.offsets.values(), (std::vector<std::int32_t>{0, 3, 5, 7, 8}));
  EXPECT_EQ(groups.token_of.values(), (std::vector<std::int32_t>{0, 1, 3, 1, 3, 0, 2, 2}));
  EXPECT_EQ(groups.row_of.values(), (std::vector<std::int32_t>{5, 0, 1, 3, 7, 6, 4, 2}));
}

// Breaks: expert parallelism, where a rank has some of the experts and ids of nobody occur.
TEST(GroupByExpertTest, LeavesOutWhatOthersHold) {
  const Ints ids({3, 2}, {5, 2, -1, 4, 3, 0});
  const Groups groups(ids, {3, 7});  // experts 3 … 6; 6 is empty
  EXPECT_EQ(groups.offsets.values(), (std::vector<std::int32_t>{0, 1, 2, 3, 3}));
  EXPECT_EQ(groups.row_of.values(), (std::vector<std::int32_t>{2, -1, -1, 1, 0, -1}));
  EXPECT_EQ(groups.token_of.values(), (std::vector<std::int32_t>{2, 1, 0, 99, 99, 99}));
}

// Breaks: a rank whose experts nobody chose.
TEST(GroupByExpertTest, TakesEmptyExpertsAndNoTokens) {
  const Groups unused(Ints({2, 1}, {0, 1}), {4, 6});
  EXPECT_EQ(unused.offsets.values(), (std::vector<std::int32_t>{0, 0, 0}));
  EXPECT_EQ(unused.row_of.values(), (std::vector<std::int32_t>{-1, -1}));
  const Groups no_tokens(Ints({0, 2}), {0, 3});
  EXPECT_EQ(no_tokens.offsets.values(), (std::vector<std::int32_t>{0, 0, 0, 0}));
  const Groups no_experts(Ints({2, 1}, {0, 1}), {0, 0});
  EXPECT_EQ(no_experts.offsets.values(), (std::vector<std::int32_t>{0}));
}

// Breaks: experts get other rows than the tokens that chose them.
TEST(GatherRowsTest, CopiesTheIndexedRows) {
  const Floats x({3, 2}, {0, 1, 10, 11, 20, 21});
  const Ints index({4}, {2, 0, 2, 77});
  const Ints count({1}, {3});
  Floats out({4, 2}, -1.0f);
  RunSpecification(GatherRows{out.view(), x.view(), index.view(), count.view()});
  EXPECT_EQ(out.values(), (std::vector<float>{20, 21, 0, 1, 20, 21, -1, -1}));
}

// Breaks: rows of other types, or of a wider tensor.
TEST(GatherRowsTest, TakesAnyTypeAndRowStride) {
  const HostTensor<std::uint8_t> x({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8});
  const Ints index({1}, {1});
  const Ints count({1}, {1});
  HostTensor<std::uint8_t> out({1, 2});
  RunSpecification(GatherRows{out.view(), x.view().Columns(1, 2), index.view(), count.view()});
  EXPECT_EQ(out.values(), (std::vector<std::uint8_t>{6, 7}));
}

// Breaks: large batches, whose rows are divided among threads; and steps without rows.
TEST(GatherRowsTest, TakesManyRowsAndNone) {
  const Floats x({1, 3}, {1, 2, 3});
  const Ints index({100});
  for (const std::int32_t rows : {0, 100}) {
    const Ints count({1}, {rows});
    Floats out({100, 3}, -1.0f);
    RunSpecification(GatherRows{out.view(), x.view(), index.view(), count.view()});
    EXPECT_EQ(out[297], rows == 0 ? -1.0f : 1.0f);
    EXPECT_EQ(out[299], rows == 0 ? -1.0f : 3.0f);
  }
}

}  // namespace
}  // namespace jubal

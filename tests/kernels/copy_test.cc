#include "kernels/copy.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: a step's inputs do not reach the device, or a neighbour's columns are overwritten.
TEST(CopyTest, TakesRowStridesOnBothSides) {
  Ints out({2, 4}, {0, 1, 2, 3, 4, 5, 6, 7});
  const Ints x({2, 3}, {10, 11, 12, 13, 14, 15});
  RunSpecification(Copy{out.view().Columns(1, 2), x.view().Columns(1, 2)});
  EXPECT_EQ(out.values(), (std::vector<std::int32_t>{0, 11, 12, 3, 4, 14, 15, 7}));
}

// Breaks: whatever is not a float is copied by a wrong number of bytes.
TEST(CopyTest, CopiesEveryElementSize) {
  HostTensor<std::int8_t> bytes({3});
  RunSpecification(Copy{bytes.view(), HostTensor<std::int8_t>({3}, {1, -2, 3}).view()});
  EXPECT_EQ(bytes.values(), (std::vector<std::int8_t>{1, -2, 3}));
  HostTensor<std::int64_t> words({1, 2, 1});
  RunSpecification(Copy{words.view(), HostTensor<std::int64_t>({1, 2, 1}, {1, -2}).view()});
  EXPECT_EQ(words.values(), (std::vector<std::int64_t>{1, -2}));
}

// Breaks: sums start from what the last step left.
TEST(ZeroTest, ClearsAllAndNothingElse) {
  Floats out({3, 2}, 1.0f);
  RunSpecification(Zero{out.view().Rows(1, 2)});
  EXPECT_EQ(out.values(), (std::vector<float>{1, 1, 0, 0, 0, 0}));
}

// Breaks: an idle step crashes.
TEST(CopyTest, TakesNoTokens) {
  Floats none({0, 3});
  RunSpecification(Copy{none.view(), none.view()});
  RunSpecification(Zero{none.view()});
}

}  // namespace
}  // namespace jubal

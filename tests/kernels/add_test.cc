#include "kernels/add.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

// Breaks: the residual stream loses what a layer contributes.
TEST(AddTest, AddsToTheFirstOperand) {
  Floats into({2, 3}, {1, 2, 3, 4, 5, 6});
  const Floats x({2, 3}, {10, 20, 30, 40, 50, 60});
  RunSpecification(Add{into.view(), x.view()});
  EXPECT_EQ(into.values(), (std::vector<float>{11, 22, 33, 44, 55, 66}));
}

// Breaks: operands that are columns of a wider tensor are read as if they were dense.
TEST(AddTest, TakesRowStrides) {
  Floats into({2, 3}, {1, 2, 3, 4, 5, 6});
  const Floats x({20, 2}, 1.0f);
  RunSpecification(Add{into.view().Columns(1, 2), x.view().Rows(4, 2)});
  EXPECT_EQ(into.values(), (std::vector<float>{1, 3, 4, 4, 6, 7}));
}

// Breaks: large prefill steps, whose rows are divided among threads.
TEST(AddTest, AddsManyRows) {
  Floats into({100, 7}, 1.0f);
  const Floats x({100, 7}, 2.0f);
  RunSpecification(Add{into.view(), x.view()});
  EXPECT_EQ(into.values(), std::vector<float>(700, 3.0f));
}

// Breaks: an idle step crashes.
TEST(AddTest, TakesNoTokens) {
  Floats into({0, 3});
  RunSpecification(Add{into.view(), into.view()});
}

}  // namespace
}  // namespace jubal

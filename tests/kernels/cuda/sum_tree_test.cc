#include "kernels/sum_tree.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class SumTreeGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(SumTreeGpuTest);

// Breaks: the tokens that a model produces depend on how many ranks serve it, and on what.
TEST_P(SumTreeGpuTest, HasTheBitsOfTheSpecification) {
  for (int ranks = 1; ranks <= kChunks; ++ranks) {
    for (const std::int64_t rows : {0, 1, 3}) {
      constexpr std::int64_t kColumns = 1030;
      std::vector<Subtree> subtrees;
      for (int rank = 0; rank < ranks; ++rank) {
        for (const Subtree& subtree : MaximalSubtrees(OwnedChunks(rank, ranks))) {
          subtrees.push_back(subtree);
        }
      }
      std::vector<Floats> partials;
      for (std::uint32_t p = 0; p < subtrees.size(); ++p) {
        partials.push_back(RandomFloats({rows, kColumns + p}, p));  // strides of their own
      }
      std::vector<ConstTensorView> views;
      std::vector<ConstTensorView> views_there;
      for (const Floats& partial : partials) {
        views.push_back(partial.view().Columns(0, kColumns));
        views_there.push_back(OnGpu(partial).Columns(0, kColumns));
      }
      Floats expected({rows, kColumns});
      RunSpecification(SumTree{expected.view(), views, subtrees});
      const TensorView out = Allocate(DType::kF32, {rows, kColumns});
      Launch(SumTree{out, views_there, subtrees});
      EXPECT_EQ(ReadBack<float>(out), expected.values()) << rows << " rows, " << ranks << " ranks";
    }
  }
}

// Breaks: all-reduces that finish in the buffer of the first partial sum.
TEST_P(SumTreeGpuTest, MayOverwriteTheFirstPartial) {
  Floats left = RandomFloats({2, 700}, 1);
  const Floats right = RandomFloats({2, 700}, 2);
  const Subtree subtrees[] = {{0, 4}, {4, 4}};
  const TensorView left_there = OnGpu(left);
  const ConstTensorView views_there[] = {left_there, OnGpu(right)};
  Launch(SumTree{left_there, views_there, subtrees});
  const ConstTensorView views[] = {left.view(), right.view()};
  RunSpecification(SumTree{left.view(), views, subtrees});
  EXPECT_EQ(ReadBack<float>(left_there), left.values());
}

}  // namespace
}  // namespace jubal

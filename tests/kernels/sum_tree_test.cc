#include "kernels/sum_tree.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {
namespace {

std::vector<float> Sum(const std::vector<Floats>& partials, const std::vector<Subtree>& subtrees) {
  std::vector<ConstTensorView> views;
  for (const Floats& partial : partials) views.push_back(partial.view());
  Floats out(partials[0].view().shape());
  RunSpecification(SumTree{out.view(), views, subtrees});
  return out.values();
}

float Node(const std::vector<Floats>& chunks, std::int64_t i, int first, int count) {
  if (count == 1) return chunks[static_cast<std::size_t>(first)][i];
  return Node(chunks, i, first, count / 2) + Node(chunks, i, first + count / 2, count / 2);
}

// Breaks: the tokens that a model produces depend on how many ranks serve it.
TEST(SumTreeTest, AllDivisionsGiveTheBitsOfTheTree) {
  constexpr std::int64_t kColumns = 1000;
  std::vector<Floats> chunks;
  for (std::uint32_t c = 0; c < kChunks; ++c) chunks.push_back(RandomFloats({3, kColumns}, c));
  std::vector<float> expected;
  for (std::int64_t i = 0; i < 3 * kColumns; ++i) expected.push_back(Node(chunks, i, 0, kChunks));

  for (int ranks = 1; ranks <= kChunks; ++ranks) {
    std::vector<Floats> partials;
    std::vector<Subtree> subtrees;
    for (int rank = 0; rank < ranks; ++rank) {
      for (const Subtree& subtree : MaximalSubtrees(OwnedChunks(rank, ranks))) {
        subtrees.push_back(subtree);
        Floats partial({3, kColumns});
        for (std::int64_t i = 0; i < 3 * kColumns; ++i) {
          partial[i] = Node(chunks, i, subtree.first_chunk, subtree.num_chunks);
        }
        partials.push_back(std::move(partial));
      }
    }
    EXPECT_EQ(Sum(partials, subtrees), expected) << ranks << " ranks";
  }
}

// Breaks: the order of the sum is not the promised one. 1 is lost beside 2²⁴ unless its buddy,
// another 1, is added to it first.
TEST(SumTreeTest, AddsBuddiesFirst) {
  const float large = 16777216.0f;
  std::vector<Floats> partials;
  std::vector<Subtree> subtrees;
  for (int c = 0; c < kChunks; ++c) {
    const float value = c == 0 ? large : c == 2 || c == 3 ? 1.0f : 0.0f;
    partials.emplace_back(Shape{1, 1}, value);
    subtrees.push_back({c, 1});
  }
  EXPECT_EQ(Sum(partials, subtrees)[0], large + 2.0f);
}

// Breaks: all-reduces that finish in the buffer of the first partial sum.
TEST(SumTreeTest, MayOverwriteTheFirstPartial) {
  Floats left = RandomFloats({2, 700}, 1);
  const Floats right = RandomFloats({2, 700}, 2);
  const Floats before = left;
  const ConstTensorView views[] = {left.view(), right.view()};
  const Subtree subtrees[] = {{0, 4}, {4, 4}};
  RunSpecification(SumTree{left.view(), views, subtrees});
  for (std::int64_t i = 0; i < 1400; ++i) ASSERT_EQ(left[i], before[i] + right[i]);
}

// Breaks: an idle step crashes.
TEST(SumTreeTest, TakesNoRows) { EXPECT_TRUE(Sum({Floats({0, 5})}, {{0, 8}}).empty()); }

}  // namespace
}  // namespace jubal

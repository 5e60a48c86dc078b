// If the sum depended on how many ranks take part, a server would answer differently on another
// number of ranks, and ranks would disagree on the routing and hang in the next exchange.

#include "parallel/all_reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/parallel/local_world.h"

namespace jubal {
namespace {

using Floats = std::vector<float>;

TensorView ViewOf(Floats& floats, Shape shape) {
  return TensorView(reinterpret_cast<std::byte*>(floats.data()), DType::kF32, shape);
}

/// Partial products of the 8 chunks, of such different sizes that every order of addition shows.
std::vector<Floats> RandomChunks(std::int64_t elements) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<Floats> chunks(kChunks, Floats(static_cast<std::size_t>(elements)));
  for (Floats& chunk : chunks) {
    for (float& value : chunk) value = normal(random) * std::exp2(4 * normal(random));
  }
  return chunks;
}

float SumOfSubtree(const std::vector<Floats>& chunks, Subtree subtree, std::size_t element) {
  if (subtree.num_chunks == 1)
    return chunks[static_cast<std::size_t>(subtree.first_chunk)][element];
  const int half = subtree.num_chunks / 2;
  return SumOfSubtree(chunks, {subtree.first_chunk, half}, element) +
         SumOfSubtree(chunks, {subtree.first_chunk + half, half}, element);
}

Floats SumsOfSubtrees(const std::vector<Floats>& chunks, const std::vector<Subtree>& subtrees) {
  Floats sums;
  for (const Subtree& subtree : subtrees) {
    for (std::size_t i = 0; i < chunks[0].size(); ++i) {
      sums.push_back(SumOfSubtree(chunks, subtree, i));
    }
  }
  return sums;
}

enum class Place { kApart, kInFirstPartial };

void CheckAllReduce(int size, std::int64_t rows, std::int64_t n, Place place) {
  SCOPED_TRACE(testing::Message() << size << " ranks, " << rows << " rows of " << n);
  const std::vector<Floats> chunks = RandomChunks(rows * n);
  const Floats expected = SumsOfSubtrees(chunks, {{0, kChunks}});
  RunLocalWorld(size, [&](std::unique_ptr<Communicator> group) {
    Stream stream(Device::kCpu);
    const auto subtrees = MaximalSubtrees(OwnedChunks(group->rank(), size));
    Floats partials = SumsOfSubtrees(chunks, subtrees);
    Floats apart(static_cast<std::size_t>(rows * n) + 1);
    partials.resize(partials.size() + 1);  // an address even for no rows
    Floats& out = place == Place::kApart ? apart : partials;
    constexpr std::size_t kGuard = 64;
    const auto bytes = static_cast<std::size_t>(AllReduceTreeBytes(size, rows, n));
    Floats workspace(bytes / sizeof(float) + kGuard, -77.0f);
    Run(AllReduceTree{.out = ViewOf(out, {rows, n}),
                      .partials =
                          ViewOf(partials, {static_cast<std::int64_t>(subtrees.size()), rows, n}),
                      .workspace = TensorView(reinterpret_cast<std::byte*>(workspace.data()),
                                              DType::kU8, {static_cast<std::int64_t>(bytes)})},
        *group, stream);
    EXPECT_TRUE(expected.empty() ||
                std::memcmp(out.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    for (std::size_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(workspace[bytes / sizeof(float) + i], -77.0f);
    }
  });
}

class AllReduceTest : public testing::TestWithParam<int> {};

TEST_P(AllReduceTest, HasTheBitsOfOneRank) {
  for (const std::int64_t rows : {0, 1, 2, 5, 40}) {
    // The larger rows make the larger batches (40 · 1000 floats) go by the divided form.
    for (const std::int64_t n : {1, 17, 1000}) {
      CheckAllReduce(GetParam(), rows, n, Place::kApart);
      CheckAllReduce(GetParam(), rows, n, Place::kInFirstPartial);
    }
  }
}

TEST_P(AllReduceTest, FewerRowsThanRanksInTheDividedForm) {
  CheckAllReduce(GetParam(), 2, 20000, Place::kInFirstPartial);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AllReduceTest, testing::Range(1, 9));

}  // namespace
}  // namespace jubal

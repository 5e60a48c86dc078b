// If the sum depended on how many ranks take part, a server would answer differently on another
// number of ranks, and ranks would disagree on the routing and hang in the next exchange.

#include "parallel/all_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/arena.h"
#include "tests/parallel/device_world.h"

namespace jubal {
namespace {

using Floats = std::vector<float>;

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

void CheckAllReduce(RunDeviceWorld run_world, int size, std::int64_t rows, std::int64_t n) {
  SCOPED_TRACE(testing::Message() << size << " ranks, " << rows << " rows of " << n);
  const std::vector<Floats> chunks = RandomChunks(rows * n);
  const Floats expected = SumsOfSubtrees(chunks, {{0, kChunks}});
  run_world(size, [&](std::unique_ptr<Communicator> group, Stream& stream) {
    const auto subtrees = MaximalSubtrees(OwnedChunks(group->rank(), size));
    const Floats sums = SumsOfSubtrees(chunks, subtrees);
    const auto count = static_cast<std::int64_t>(subtrees.size());
    constexpr std::int64_t kGuard = 64;
    const std::int64_t bytes = AllReduceTreeBytes(size, rows, n);
    const std::int64_t workspace_floats = bytes / SizeOf(DType::kF32) + kGuard;
    Arena arena = NewArenaFor(*group,
                              ArenaBytes(rows * n * 4) + ArenaBytes(count * rows * n * 4) +
                                  ArenaBytes(workspace_floats * 4),
                              stream);
    const TensorView out = arena.Take(DType::kF32, {rows, n});
    const TensorView partials = arena.Take(DType::kF32, {count, rows, n});
    const TensorView workspace = arena.Take(DType::kF32, {workspace_floats});
    Upload(partials, sums, stream);
    Upload(workspace, Floats(static_cast<std::size_t>(workspace_floats), -77.0f), stream);
    Run(AllReduceTree{.out = out,
                      .partials = partials,
                      .workspace =
                          TensorView(workspace.raw(), DType::kU8, {bytes}, workspace.device())},
        *group, stream);
    // Nobody reads the partials any more.
    Upload(partials, Floats(sums.size(), -1.0f), stream);
    const Floats sum = Download<float>(out, stream);
    EXPECT_TRUE(expected.empty() ||
                std::memcmp(sum.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    EXPECT_EQ(Download<float>(workspace.Rows(workspace_floats - kGuard, kGuard), stream),
              Floats(kGuard, -77.0f));
  });
}

using Case = std::tuple<RunDeviceWorld, int>;

class AllReduceTest : public testing::TestWithParam<Case> {};

TEST_P(AllReduceTest, HasTheBitsOfOneRank) {
  const auto [run_world, size] = GetParam();
  for (const std::int64_t rows : {0, 1, 2, 5, 40}) {
    // The larger rows make the larger batches (40 · 1000 floats) go by the divided form.
    for (const std::int64_t n : {1, 17, 1000}) CheckAllReduce(run_world, size, rows, n);
  }
}

TEST_P(AllReduceTest, DividesASingleLongRow) {
  const auto [run_world, size] = GetParam();
  CheckAllReduce(run_world, size, 1, 20011);
}

INSTANTIATE_TEST_SUITE_P(Local, AllReduceTest,
                         testing::Combine(testing::Values(RunLocalCpus), testing::Range(1, 9)));
INSTANTIATE_TEST_SUITE_P(SharedMemory, AllReduceTest,
                         testing::Combine(testing::Values(RunSharedMemoryCpus),
                                          testing::Range(2, 9)));
INSTANTIATE_TEST_SUITE_P(Gpus, AllReduceTest,
                         testing::Combine(testing::Values(RunHostStagedGpus, RunEnqueuedGpus),
                                          testing::Values(1, 2, 3, 5, 8)));

// Breaks: a decode step on GPUs runs a graph that adds up what it was recorded with.
TEST(AllReduceGraphTest, AddsUpWhatIsThereWhenItIsLaunched) {
  for (const int size : {1, 2, 3}) {
    for (const std::int64_t n : {100, 20011}) {  // gathered whole, and divided
      RunEnqueuedGpus(size, [&](std::unique_ptr<Communicator> group, Stream& stream) {
        const auto subtrees = MaximalSubtrees(OwnedChunks(group->rank(), size));
        const auto count = static_cast<std::int64_t>(subtrees.size());
        const std::int64_t bytes = AllReduceTreeBytes(size, 1, n);
        Arena arena(stream.gpu(),
                    ArenaBytes(n * 4) + ArenaBytes(count * n * 4) + ArenaBytes(bytes));
        const TensorView out = arena.Take(DType::kF32, {1, n});
        const TensorView partials = arena.Take(DType::kF32, {count, 1, n});
        stream.queue().BeginCapture();
        jubal::Run(
            AllReduceTree{
                .out = out, .partials = partials, .workspace = arena.Take(DType::kU8, {bytes})},
            *group, stream);
        const auto graph = stream.queue().EndCapture();
        std::vector<Floats> chunks = RandomChunks(n);
        for (int launch = 0; launch < 2; ++launch) {
          Upload(partials, SumsOfSubtrees(chunks, subtrees), stream);
          stream.queue().Launch(*graph);
          EXPECT_EQ(Download<float>(out, stream), SumsOfSubtrees(chunks, {{0, kChunks}}));
          std::reverse(chunks.begin(), chunks.end());
        }
      });
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/chunks.h"

#include <gtest/gtest.h>

namespace jubal {
namespace {

// If this fails, ranks compute a part of a product twice or not at all.
TEST(Chunks, TileTheInputDimension) {
  for (const std::int64_t extent : {0, 1, 7, 8, 15 * 8, 1030, 32768}) {
    std::int64_t next = 0;
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const Range columns = ChunkColumns(extent, chunk);
      EXPECT_EQ(columns.begin, next);
      EXPECT_LE(columns.size(), extent / kChunks + 1);
      next = columns.end;
    }
    EXPECT_EQ(next, extent);
  }
}

// If this fails, a chunk has no owner or two, and the all-reduce gives a wrong sum.
TEST(Chunks, HaveOneOwnerForAnyNumberOfMembers) {
  for (int count = 1; count <= kChunks; ++count) {
    std::int64_t next = 0;
    for (int index = 0; index < count; ++index) {
      const Range owned = OwnedChunks(index, count);
      EXPECT_EQ(owned.begin, next);
      EXPECT_GE(owned.size(), kChunks / count);
      EXPECT_EQ(ColumnsOfChunks(1030, owned).begin,
                ChunkColumns(1030, static_cast<int>(owned.begin)).begin);
      EXPECT_EQ(ColumnsOfChunks(1030, owned).end,
                ChunkColumns(1030, static_cast<int>(owned.end) - 1).end);
      next = owned.end;
    }
    EXPECT_EQ(next, kChunks);
  }
  EXPECT_EQ(OwnedChunks(0, 3), (Range{0, 3}));
  EXPECT_EQ(OwnedChunks(1, 3), (Range{3, 6}));
  EXPECT_EQ(OwnedChunks(2, 3), (Range{6, 8}));
}

// If this fails, members send partial sums that are no nodes of the one tree, and the bits of a
// result depend on the number of ranks.
TEST(Chunks, MaximalSubtreesAreAlignedAndFewest) {
  for (int begin = 0; begin <= kChunks; ++begin) {
    for (int end = begin; end <= kChunks; ++end) {
      int next = begin;
      int previous = 0;
      for (const Subtree& subtree : MaximalSubtrees({begin, end})) {
        EXPECT_EQ(subtree.first_chunk, next);
        EXPECT_EQ(subtree.first_chunk % subtree.num_chunks, 0);
        EXPECT_EQ(subtree.num_chunks & (subtree.num_chunks - 1), 0);
        const bool twins = previous == subtree.num_chunks &&
                           (subtree.first_chunk - previous) % (2 * previous) == 0;
        EXPECT_FALSE(twins) << "two neighbours could be one subtree";
        previous = subtree.num_chunks;
        next += subtree.num_chunks;
      }
      EXPECT_EQ(next, end);
    }
  }
  EXPECT_EQ(MaximalSubtrees({0, 8}), (std::vector<Subtree>{{0, 8}}));
  EXPECT_EQ(MaximalSubtrees({3, 6}), (std::vector<Subtree>{{3, 1}, {4, 2}}));
}

// If this fails, an all-reduce sends more vectors per rank than its buffers are planned for.
TEST(Chunks, MembersHoldAtMostTwoSubtrees) {
  for (int count = 1; count <= kChunks; ++count) {
    const bool power_of_two = (count & (count - 1)) == 0;
    for (int index = 0; index < count; ++index) {
      EXPECT_LE(MaximalSubtrees(OwnedChunks(index, count)).size(), power_of_two ? 1u : 2u);
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kInt8,
                                 WeightType::kInt4};

/// Compares the share with the definition of the layout, byte by byte and in memory order.
void ExpectPackedByDefinition(const RandomMatrix& matrix, const MatrixLayout& layout) {
  const PackedShare share(matrix, layout);
  const std::byte* data = share.matrix().data;
  const float* scales = share.matrix().scales;
  const std::int64_t rows_per_step = RowsPerStep(layout.type);
  for (std::int64_t expert = layout.experts.begin; expert < layout.experts.end; ++expert) {
    for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
      for (std::int64_t block = layout.blocks().begin; block < layout.blocks().end; ++block) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
        const std::byte* block_begin = data;
        for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
          const Range rows = layout.GroupRows(chunk, group);
          for (std::int64_t step = rows.begin; step < rows.end; step += rows_per_step) {
            for (std::int64_t c = 0; c < kBlockColumns; ++c) {
              const std::int64_t column = block * kBlockColumns + c;
              const auto stored = [&](std::int64_t row) {
                return row < rows.end && column < layout.n ? matrix.Stored(expert, row, column)
                                                           : 0.0f;
              };
              if (layout.type == WeightType::kInt4) {
                for (std::int64_t row = step; row < step + 4; ++row) {
                  ASSERT_EQ(std::to_integer<int>(*data & std::byte{15}) - 8, stored(row));
                  ASSERT_EQ(std::to_integer<int>(*data >> 4) - 8, stored(row + 4));
                  data += 1;
                }
                continue;
              }
              for (std::int64_t row = step; row < step + rows_per_step; ++row) {
                const float expected = stored(row);
                if (layout.type == WeightType::kInt8) {
                  ASSERT_EQ(std::to_integer<int>(*data), static_cast<int>(expected) + 128);
                  data += 1;
                } else {
                  std::uint32_t bits = 0;
                  std::memcpy(&bits, data, static_cast<std::size_t>(4 / rows_per_step));
                  if (layout.type == WeightType::kBf16) bits <<= 16;
                  ASSERT_EQ(bits, std::bit_cast<std::uint32_t>(expected));
                  data += 4 / rows_per_step;
                }
              }
            }
          }
        }
        EXPECT_EQ(data - block_begin, layout.BlockBytes(chunk));
      }
      if (!HasScales(layout.type)) continue;
      for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
        const std::int64_t global = layout.GroupRows(chunk, group).begin / layout.group_rows;
        for (std::int64_t c = 0; c < layout.stored_columns(); ++c) {
          const std::int64_t column = layout.blocks().begin * kBlockColumns + c;
          ASSERT_EQ(*scales++, column < layout.n ? matrix.Scale(expert, global, column) : 0.0f);
        }
      }
    }
  }
  EXPECT_EQ(data - share.matrix().data, layout.WeightBytes());
  EXPECT_EQ((scales - share.matrix().scales) * 4, layout.ScaleBytes());
}

// If this fails, every product with a by-output matrix is wrong: kernels read other weights.
TEST(PackMatrix, ByOutputFollowsTheLayout) {
  for (const WeightType type : kTypes) {
    for (const bool output_major : {false, true}) {
      for (const std::int64_t n : {1, 63, 64, 65, 200}) {
        for (const std::int64_t k : {1, 4, 15, 48, 513, 1030}) {
          for (const std::int64_t groups : {1, 8}) {
            SCOPED_TRACE(std::string(NameOf(type)) + " n " + std::to_string(n) + " k " +
                         std::to_string(k) + " groups " + std::to_string(groups));
            const RandomMatrix matrix(type, k, n, groups, 1, output_major);
            ExpectPackedByDefinition(matrix, matrix.LayoutByOutput({0, n}));
            ExpectPackedByDefinition(matrix, matrix.LayoutByOutput({n / 3, n - n / 4}));
          }
        }
      }
    }
  }
}

// If this fails, ranks hold wrong chunks of attention outputs and expert downs, or chunks of
// neighbouring scale groups meet the wrong scale.
TEST(PackMatrix, ByInputFollowsTheLayout) {
  for (const WeightType type : kTypes) {
    for (const bool output_major : {false, true}) {
      for (const std::int64_t k : {1, 4, 15 * 8, 48, 1030}) {
        for (const std::int64_t groups : {1, 3, 8}) {
          for (const Range chunks : {Range{0, 8}, Range{3, 6}, Range{7, 8}}) {
            SCOPED_TRACE(std::string(NameOf(type)) + " k " + std::to_string(k) + " groups " +
                         std::to_string(groups));
            const RandomMatrix matrix(type, k, 70, groups, 1, output_major);
            ExpectPackedByDefinition(matrix, matrix.LayoutByInput(chunks));
          }
        }
      }
    }
  }
}

// If this fails, a rank runs tokens through another expert's weights.
TEST(PackMatrix, ExpertsOfARangeLieOneAfterTheOther) {
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 50, 130, 8, 5);
    ExpectPackedByDefinition(matrix, matrix.LayoutByOutput({10, 129}, {2, 5}));
    ExpectPackedByDefinition(matrix, matrix.LayoutByInput({2, 5}, {1, 4}));
  }
}

// If this fails, a rank of a packed model reads ahead what it does not need, and waits for the disk
// where it computes; and a GPU has other weights than its rank.
TEST(DataRanges, HoldWhatTheRankWouldHavePacked) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t k : {5, 48, 1030}) {
      SCOPED_TRACE(std::string(NameOf(type)) + " k " + std::to_string(k));
      const RandomMatrix matrix(type, k, 300, 3, 4);
      const auto check = [&](const MatrixLayout& whole, const MatrixLayout& part,
                             std::size_t ranges) {
        const PackedShare all(matrix, whole);
        const PackedShare share(matrix, part);
        std::vector<std::byte> read;
        std::int64_t end = -1;
        for (const Range& range : DataRanges(whole, part)) {
          EXPECT_GT(range.begin, end);  // neighbours are joined
          end = range.end;
          read.insert(read.end(), all.matrix().data + range.begin, all.matrix().data + range.end);
        }
        ASSERT_EQ(static_cast<std::int64_t>(read.size()), part.WeightBytes());
        EXPECT_TRUE(std::equal(read.begin(), read.end(), share.matrix().data));
        EXPECT_LE(DataRanges(whole, part).size(), ranges);
        std::vector<float> scales;
        for (const Range& range : ScaleRanges(whole, part)) {
          scales.insert(scales.end(), all.matrix().scales + range.begin / 4,
                        all.matrix().scales + range.end / 4);
        }
        ASSERT_EQ(static_cast<std::int64_t>(scales.size()) * 4, part.ScaleBytes());
        EXPECT_TRUE(std::equal(scales.begin(), scales.end(), share.matrix().scales));
      };
      const Range all{0, 4};
      const MatrixLayout by_output = matrix.LayoutByOutput({0, 300}, all);
      check(by_output, by_output, 1);
      check(by_output, matrix.LayoutByOutput({0, 300}, {1, 3}), 1);
      check(by_output, matrix.LayoutByOutput({70, 200}, {1, 4}), 3);
      check(by_output, matrix.LayoutByOutput({70, 70}, all), 0);
      const MatrixLayout by_input = matrix.LayoutByInput({0, 8}, all);
      check(by_input, by_input, 1);
      check(by_input, matrix.LayoutByInput({2, 5}, {0, 3}), 3);
      check(by_input, matrix.LayoutByInput({7, 8}, {3, 4}), 1);
    }
  }
}

// If this fails, a rank without a share of a small matrix reads beyond it or plans bytes for it.
TEST(MatrixLayout, EmptySharesHaveNoBytes) {
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 5, 100, 1);
    EXPECT_EQ(matrix.LayoutByOutput({70, 70}).WeightBytes(), 0);
    EXPECT_EQ(matrix.LayoutByOutput({70, 70}).ScaleBytes(), 0);
    const MatrixLayout layout = matrix.LayoutByInput({0, 1});  // chunk 0 of K = 5 has no rows
    EXPECT_EQ(layout.InputRows(), (Range{0, 0}));
    EXPECT_EQ(layout.WeightBytes(), 0);
    EXPECT_EQ(layout.ScaleBytes(), 0);
  }
}

// If this fails, the memory plan of Grok-1 is wrong.
TEST(MatrixLayout, SizesOfGrokExpertDown) {
  const MatrixLayout layout{.type = WeightType::kInt8,
                            .split = Split::kByInput,
                            .k = 32768,
                            .n = 6144,
                            .group_rows = 4096,
                            .experts = {0, 8},
                            .chunks = {2, 4},
                            .columns = {0, 6144}};
  EXPECT_EQ(layout.ChunkGroups(2), 1);
  EXPECT_EQ(layout.GroupRows(3, 0), (Range{3 * 4096, 4 * 4096}));
  EXPECT_EQ(layout.WeightBytes(), std::int64_t{8} * 2 * 4096 * 6144);
  EXPECT_EQ(layout.ScaleBytes(), std::int64_t{8} * 2 * 6144 * 4);
}

}  // namespace
}  // namespace jubal

#include "kernels/matmul.h"

#include <gtest/gtest.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/run.h"
#include "tests/kernels/cpu_tier_test.h"
#include "tests/kernels/matmul_operands.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

using MatmulTier = CpuTierTest;

INSTANTIATE_TEST_SUITE_P(Tiers, MatmulTier, testing::ValuesIn(kAllCpuIsas), CpuTierTest::Name);

// If this fails, a tier computes other numbers than the specification, so that ranks on unlike CPUs
// disagree; or a row's bits change with the rows beside it, so that a token depends on the batch.
TEST_P(MatmulTier, HasTheBitsOfTheReferenceForAnyNumberOfRows) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t groups : {1, 8}) {
      if (groups > 1 && !HasScales(type)) continue;
      for (const std::int64_t n : {1, 63, 64, 65, 200}) {
        for (const std::int64_t k : {1, 4, 15 * 8, 48, 512, 513, 1030}) {
          SCOPED_TRACE(Describe(type, k, n, groups));
          const bool several_panels = n == 200 && k == 513;
          const std::int64_t most = several_panels ? 133 : 13;
          const RandomMatrix matrix(type, k, n, groups);
          const PackedShare share(matrix, matrix.LayoutByOutput({0, n}));
          Floats x = RandomRows(most, k);
          Floats expected({most, n});
          const Workspace workspace(share.matrix().layout, most);
          RunSpecification(MatmulOf(share, expected, x.view(), workspace));
          for (const std::int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 13, 133}) {
            if (rows > most) continue;
            Floats out({rows, n});
            RunChecked(MatmulOf(share, out, x.view().Rows(0, rows), workspace));
            ExpectSameBits(expected.view().Rows(0, rows), out.view());
          }
          Floats last({1, n});
          RunChecked(MatmulOf(share, last, x.view().Rows(most - 1, 1), workspace));
          ExpectSameBits(expected.view().Rows(most - 1, 1), last.view());
        }
      }
    }
  }
}

// If this fails, a rank that owns columns in the middle of a block writes wrong ones, or a logit
// multiplier is lost, or rows with a stride are misread.
TEST_P(MatmulTier, ComputesAnyRangeOfColumns) {
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 130, 300, 4);
    for (const Range columns : {Range{0, 0}, Range{5, 6}, Range{60, 70}, Range{64, 128},
                                Range{127, 299}, Range{130, 140}, Range{255, 300}}) {
      const PackedShare share(matrix, matrix.LayoutByOutput(columns));
      for (const std::int64_t rows : {1, 2, 3, 21}) {
        SCOPED_TRACE(Describe(type, 130, columns.size(), 4));
        Floats x = RandomRows(rows, 130, 9);
        Floats expected({rows, columns.size()});
        Floats out({rows, columns.size()}, kUntouched, 3);
        const Workspace workspace(share.matrix().layout, rows);
        RunSpecification(MatmulOf(share, expected, x.view(), workspace, 0.577f));
        RunChecked(MatmulOf(share, out, x.view(), workspace, 0.577f));
        ExpectSameBits(expected.view(), out.view());
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t gap = 0; gap < 3; ++gap) {
            EXPECT_EQ(out.at(r, columns.size() + gap), kUntouched);
          }
        }
      }
    }
  }
}

// If this fails, partial products differ from the specification for some share of the chunks.
TEST_P(MatmulTier, PartialsHaveTheBitsOfTheReference) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t groups : {1, 3, 8}) {
      if (groups > 1 && !HasScales(type)) continue;
      for (const std::int64_t k : {1, 4, 15 * 8, 48, 513, 1030, 4500}) {
        for (const Range chunks : {Range{0, 8}, Range{0, 1}, Range{3, 6}, Range{1, 8}, Range{1, 7},
                                   Range{6, 8}, Range{4, 4}}) {
          const RandomMatrix matrix(type, k, 70, groups);
          const PackedShare share(matrix, matrix.LayoutByInput(chunks));
          const MatrixLayout& layout = share.matrix().layout;
          const auto planes = static_cast<std::int64_t>(MaximalSubtrees(chunks).size());
          for (const std::int64_t rows : {0, 1, 2, 19}) {
            SCOPED_TRACE(Describe(type, k, 70, groups) + " chunks " + std::to_string(chunks.begin) +
                         " to " + std::to_string(chunks.end) + " rows " + std::to_string(rows));
            Floats x = RandomRows(rows, layout.InputRows().size(), 5);
            Floats expected({planes, rows, 70});
            Floats out({planes, rows, 70});
            const Workspace workspace(layout, rows);
            RunSpecification(MatmulPartials{.out = expected.view(),
                                            .x = x.view(),
                                            .weight = share.matrix(),
                                            .workspace = workspace.view()});
            RunChecked(MatmulPartials{.out = out.view(),
                                      .x = x.view(),
                                      .weight = share.matrix(),
                                      .workspace = workspace.view()});
            ExpectSameBits(expected.view(), out.view());
          }
        }
      }
    }
  }
}

// If this fails, one of several products with a common input is wrong when they share their work.
TEST_P(MatmulTier, ProductsTogetherHaveTheBitsOfEachAlone) {
  constexpr std::int64_t kK = 300;
  for (const WeightType type : kTypes) {
    const RandomMatrix first(type, kK, 200, 4);
    const RandomMatrix second(type, kK, 70, 4);
    const PackedShare shares[] = {{first, first.LayoutByOutput({0, 200})},
                                  {second, second.LayoutByOutput({10, 10})},
                                  {second, second.LayoutByOutput({3, 70})}};
    for (const std::int64_t rows : {0, 1, 130}) {
      SCOPED_TRACE(Describe(type, kK, 200, 4));
      Floats x = RandomRows(rows, kK);
      const Workspace workspace(shares[0].matrix().layout, rows);
      std::vector<Floats> outs;
      std::vector<Matmul> products;
      for (const PackedShare& share : shares) {
        outs.emplace_back(
            std::initializer_list<std::int64_t>{rows, share.matrix().layout.columns.size()});
      }
      for (std::size_t i = 0; i < 3; ++i) {
        products.push_back(MatmulOf(shares[i], outs[i], x.view(), workspace, 0.5f));
      }
      RunChecked(Matmuls{.products = products});
      for (std::size_t i = 0; i < 3; ++i) {
        Floats alone({rows, shares[i].matrix().layout.columns.size()});
        RunSpecification(MatmulOf(shares[i], alone, x.view(), workspace, 0.5f));
        ExpectSameBits(alone.view(), outs[i].view());
      }
    }
  }
}

// If this fails, a rank that maps its part of a whole matrix computes with other weights than one
// that packed the part.
TEST_P(MatmulTier, APartWithinAWholeMatrixHasTheBitsOfItsOwnPacking) {
  constexpr std::int64_t kRows = 5;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 700, 300, 5, 3);
    const PackedShare by_output(matrix, matrix.LayoutByOutput({0, 300}, {0, 3}));
    const PackedShare by_input(matrix, matrix.LayoutByInput({0, 8}, {0, 3}));
    for (const Range columns : {Range{0, 300}, Range{70, 200}, Range{128, 129}, Range{9, 9}}) {
      const MatrixLayout layout = matrix.LayoutByOutput(columns, {1, 2});
      const PackedShare own(matrix, layout);
      Floats x = RandomRows(kRows, 700);
      Floats expected({kRows, columns.size()});
      Floats out({kRows, columns.size()});
      const Workspace workspace(layout, kRows);
      RunSpecification(MatmulOf(own, expected, x.view(), workspace));
      const Matmul part{.out = out.view(),
                        .x = x.view(),
                        .weight = PartOf(by_output.matrix(), layout),
                        .workspace = workspace.view()};
      RunSpecification(part);
      ExpectSameBits(expected.view(), out.view());
      RunChecked(part);
      ExpectSameBits(expected.view(), out.view());
    }
    for (const Range chunks : {Range{0, 8}, Range{3, 6}, Range{8, 8}}) {
      const MatrixLayout layout = matrix.LayoutByInput(chunks, {2, 3});
      const PackedShare own(matrix, layout);
      const auto planes = static_cast<std::int64_t>(MaximalSubtrees(chunks).size());
      Floats x = RandomRows(kRows, layout.InputRows().size());
      Floats expected({planes, kRows, 300});
      Floats out({planes, kRows, 300});
      const Workspace workspace(layout, kRows);
      RunSpecification(MatmulPartials{.out = expected.view(),
                                      .x = x.view(),
                                      .weight = own.matrix(),
                                      .workspace = workspace.view()});
      const MatmulPartials part{.out = out.view(),
                                .x = x.view(),
                                .weight = PartOf(by_input.matrix(), layout),
                                .workspace = workspace.view()};
      RunSpecification(part);
      ExpectSameBits(expected.view(), out.view());
      RunChecked(part);
      ExpectSameBits(expected.view(), out.view());
    }
  }
}

// If this fails, a rounding or an overflow differs at the ends of the ranges: 512 products of the
// largest integers, and longer sums that must be flushed before they overflow.
TEST_P(MatmulTier, LargestIntegersAreExact) {
  for (const std::int64_t k : {512, 2048}) {
    std::vector<std::byte> source(static_cast<std::size_t>(k * 2));
    for (std::int64_t i = 0; i < k; ++i) {
      source[static_cast<std::size_t>(i * 2)] = std::byte{127};
      source[static_cast<std::size_t>(i * 2 + 1)] = std::byte{0x80};  // −128
    }
    const std::uint16_t one = 0x3f80;
    std::uint16_t scales[2] = {one, one};
    const MatrixLayout layout{
        .type = WeightType::kInt8, .k = k, .n = 2, .group_rows = k, .columns = {0, 2}};
    const AlignedBytes data(layout.WeightBytes());
    const AlignedBytes packed_scales(layout.ScaleBytes());
    PackMatrix(layout, 0,
               {.data = source.data(), .scales = reinterpret_cast<const std::byte*>(scales)},
               data.data(), reinterpret_cast<float*>(packed_scales.data()));
    Floats x({5, k}, 16383.0f);
    Floats out({5, 2});
    const Workspace workspace(layout, 5);
    RunChecked(Matmul{.out = out.view(),
                      .x = x.view(),
                      .weight = {.layout = layout,
                                 .data = data.data(),
                                 .scales = reinterpret_cast<const float*>(packed_scales.data())},
                      .workspace = workspace.view()});
    for (std::int64_t r = 0; r < 5; ++r) {
      const auto flushes = static_cast<float>(k / 512);  // a power of two: the additions are exact
      EXPECT_EQ(out.at(r, 0), flushes * static_cast<float>(512 * 127 * 16383));
      EXPECT_EQ(out.at(r, 1), flushes * static_cast<float>(-512 * 128 * 16383));
    }
  }
}

// If this fails, one row with an infinity or a NaN crashes the server or spoils its neighbours; or
// rows of zeros and denormals, which padding tokens have, turn into NaN.
TEST_P(MatmulTier, OddRowsStayAlone) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  const RandomMatrix matrix(WeightType::kInt8, 90, 66, 1);
  const PackedShare share(matrix, matrix.LayoutByOutput({0, 66}));
  const Workspace workspace(share.matrix().layout, 6);
  Floats x = RandomRows(6, 90);
  Floats alone({6, 66});
  RunSpecification(MatmulOf(share, alone, x.view(), workspace));
  x.row(0)[3] = kInfinity;
  x.row(1)[89] = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t c = 0; c < 90; ++c) {
    x.row(3)[c] = 0.0f;
    x.row(4)[c] = c % 2 == 0 ? 100000 * kTiny : -kTiny;
  }
  Floats expected({6, 66});
  Floats out({6, 66});
  RunSpecification(MatmulOf(share, expected, x.view(), workspace));
  RunChecked(MatmulOf(share, out, x.view(), workspace));
  for (std::int64_t c = 0; c < 66; ++c) {
    EXPECT_TRUE(std::isnan(out.at(0, c)) && std::isnan(expected.at(0, c)));
    EXPECT_TRUE(std::isnan(out.at(1, c)) && std::isnan(expected.at(1, c)));
    EXPECT_EQ(out.at(3, c), 0.0f);
  }
  ExpectSameBits(expected.view().Rows(2, 4), out.view().Rows(2, 4));
  ExpectSameBits(alone.view().Rows(2, 1), out.view().Rows(2, 1));
  ExpectSameBits(alone.view().Rows(5, 1), out.view().Rows(5, 1));
}

// If this fails, a result's bits change with the number of ranks.
TEST_P(MatmulTier, AnyPlanGivesTheSameBits) {
  constexpr std::int64_t kK = 1030;
  constexpr std::int64_t kN = 130;
  constexpr std::int64_t kRows = 3;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, kK, kN, 8);
    Floats x = RandomRows(kRows, kK);
    const auto partials = [&](Range chunks) {
      const PackedShare share(matrix, matrix.LayoutByInput(chunks));
      const MatrixLayout& layout = share.matrix().layout;
      Floats out({static_cast<std::int64_t>(MaximalSubtrees(chunks).size()), kRows, kN});
      const Workspace workspace(layout, kRows);
      RunChecked(
          MatmulPartials{.out = out.view(),
                         .x = x.view().Columns(layout.InputRows().begin, layout.InputRows().size()),
                         .weight = share.matrix(),
                         .workspace = workspace.view()});
      return out;
    };
    Floats whole = partials({0, kChunks});
    for (int members = 2; members <= kChunks; ++members) {
      SCOPED_TRACE(Describe(type, kK, kN, 8) + " members " + std::to_string(members));
      // sums[c]: the node that starts at chunk c; merging twins upwards ends at the root.
      std::vector<std::vector<float>> sums(kChunks);
      std::vector<int> sizes(kChunks, 0);
      for (int member = 0; member < members; ++member) {
        const Range owned = OwnedChunks(member, members);
        Floats out = partials(owned);
        const std::vector<Subtree> subtrees = MaximalSubtrees(owned);
        for (std::size_t s = 0; s < subtrees.size(); ++s) {
          const float* plane = out.row(static_cast<std::int64_t>(s));
          const auto chunk = static_cast<std::size_t>(subtrees[s].first_chunk);
          sums[chunk].assign(plane, plane + kRows * kN);
          sizes[chunk] = subtrees[s].num_chunks;
        }
      }
      for (std::size_t size = 1; size < kChunks; size *= 2) {
        for (std::size_t left = 0; left < kChunks; left += 2 * size) {
          if (sizes[left] != static_cast<int>(size)) continue;
          for (std::size_t i = 0; i < sums[left].size(); ++i) sums[left][i] += sums[left + size][i];
          sizes[left] *= 2;
        }
      }
      ASSERT_EQ(sizes[0], kChunks);
      const ConstTensorView root(reinterpret_cast<const std::byte*>(sums[0].data()), DType::kF32,
                                 {1, kRows, kN});
      ExpectSameBits(whole.view(), root);
    }
  }
}

// If this fails, a result's bits change with the number of threads.
TEST_P(MatmulTier, AnyNumberOfThreadsGivesTheSameBits) {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 700, 500, 8);
    const PackedShare share(matrix, matrix.LayoutByOutput({0, 500}));
    Floats x = RandomRows(50, 700);
    const Workspace workspace(share.matrix().layout, 50);
    Floats expected({50, 500});
    omp_set_num_threads(1);
    RunChecked(MatmulOf(share, expected, x.view(), workspace));
    for (const int threads : {2, 3, 7}) {
      omp_set_num_threads(threads);
      Floats out({50, 500});
      RunChecked(MatmulOf(share, out, x.view(), workspace));
      ExpectSameBits(expected.view(), out.view());
    }
  }
  omp_set_num_threads(before);
#else
  GTEST_SKIP() << "built without OpenMP";
#endif
}

// If this fails, the specification itself is not a matrix product: everything held to it is wrong.
TEST(MatmulReference, IsNearTheProductInDoublePrecision) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t k : {1, 48, 513, 1030}) {
      SCOPED_TRACE(Describe(type, k, 70, 8));
      const RandomMatrix matrix(type, k, 70, 8);
      const PackedShare whole(matrix, matrix.LayoutByOutput({3, 70}));
      const PackedShare chunked(matrix, matrix.LayoutByInput({0, 8}));
      Floats x = RandomRows(3, k);
      Floats out({3, 67});
      Floats root({1, 3, 70});
      const Workspace workspace(whole.matrix().layout, 3);
      const Workspace chunk_workspace(chunked.matrix().layout, 3);
      RunSpecification(MatmulOf(whole, out, x.view(), workspace, 2.0f));
      RunSpecification(MatmulPartials{.out = root.view(),
                                      .x = x.view(),
                                      .weight = chunked.matrix(),
                                      .workspace = chunk_workspace.view()});
      for (std::int64_t r = 0; r < 3; ++r) {
        double largest = 0;
        for (std::int64_t i = 0; i < k; ++i) largest = std::fmax(largest, std::fabs(x.at(r, i)));
        for (std::int64_t c = 0; c < 70; ++c) {
          double product = 0;
          double magnitude = 0;  // Σ|x·w|
          double weights = 0;    // Σ|w|
          for (std::int64_t i = 0; i < k; ++i) {
            const double weight = matrix.Weight(0, i, c);
            product += x.at(r, i) * weight;
            magnitude += std::fabs(x.at(r, i) * weight);
            weights += std::fabs(weight);
          }
          // Each of at most k + 16 fp32 roundings errs by 2⁻²⁴ of a partial sum; an activation by
          // half a step of max|x| / 16383, and a little for the rounding of x / s itself.
          const double rounding = static_cast<double>(k + 16) * std::exp2(-24) * magnitude * 1.01;
          const double quantisation = HasScales(type) ? weights * largest / 16383 * 0.51 : 0;
          EXPECT_NEAR(root.at(0, r * 70 + c), product, rounding + quantisation);
          if (c >= 3) {
            EXPECT_NEAR(out.at(r, c - 3), 2 * product, 2 * (rounding + quantisation));
          }
        }
      }
    }
  }
}

// If this fails, activations are not rounded half to even, and packs give other bits than before.
TEST(MatmulReference, RoundsActivationsHalfToEven) {
  const std::vector<std::byte> source = {std::byte{0}, std::byte{100}};  // w = (0, 100)
  const std::uint16_t one = 0x3f80;
  const MatrixLayout layout{
      .type = WeightType::kInt8, .k = 2, .n = 1, .group_rows = 2, .columns = {0, 1}};
  const AlignedBytes data(layout.WeightBytes());
  const AlignedBytes scales(layout.ScaleBytes());
  PackMatrix(layout, 0, {.data = source.data(), .scales = reinterpret_cast<const std::byte*>(&one)},
             data.data(), reinterpret_cast<float*>(scales.data()));
  Floats x({3, 2}, 16383.0f);  // so that s = 1
  x.row(0)[1] = 0.5f;
  x.row(1)[1] = 1.5f;
  x.row(2)[1] = -2.5f;
  Floats out({3, 1});
  const Workspace workspace(layout, 3);
  RunSpecification(Matmul{.out = out.view(),
                          .x = x.view(),
                          .weight = {.layout = layout,
                                     .data = data.data(),
                                     .scales = reinterpret_cast<const float*>(scales.data())},
                          .workspace = workspace.view()});
  EXPECT_EQ(out.at(0, 0), 0.0f);
  EXPECT_EQ(out.at(1, 0), 200.0f);
  EXPECT_EQ(out.at(2, 0), -200.0f);
}

// If this fails, a plan with too little workspace corrupts memory instead of ending the process.
TEST(MatmulDeathTest, CheckRefusesBrokenOperands) {
  const RandomMatrix matrix(WeightType::kInt8, 64, 64, 1);
  const PackedShare share(matrix, matrix.LayoutByOutput({0, 64}));
  Floats x = RandomRows(8, 64);
  Floats out({8, 64});
  const Workspace small(share.matrix().layout, 1);
  const Workspace workspace(share.matrix().layout, 8);
  EXPECT_DEATH(Check(MatmulOf(share, out, x.view(), small)), "check failed");
  EXPECT_DEATH(Check(MatmulOf(share, out, x.view().Columns(0, 63), workspace)), "check failed");
  EXPECT_DEATH(Check(MatmulOf(share, x, x.view(), workspace)), "check failed");
  const PackedShare by_input(matrix, matrix.LayoutByInput({0, 8}));
  EXPECT_DEATH(Check(MatmulOf(by_input, out, x.view(), workspace)), "check failed");
}

}  // namespace
}  // namespace jubal

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
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kInt8};
constexpr float kUntouched = -12345.0f;

/// Row-major floats, optionally with unused elements between rows.
class Floats {
 public:
  Floats(std::initializer_list<std::int64_t> sizes, float fill = kUntouched, std::int64_t gap = 0)
      : shape_(sizes), gap_(gap) {
    const std::int64_t rows = shape_[0];
    for (int i = 1; i < shape_.rank(); ++i) width_ *= shape_[i];
    values_.assign(static_cast<std::size_t>(rows * (width_ + gap) + 1), fill);
  }

  TensorView view() {
    if (gap_ == 0) return {reinterpret_cast<std::byte*>(values_.data()), DType::kF32, shape_};
    const TensorView wide(reinterpret_cast<std::byte*>(values_.data()), DType::kF32,
                          {shape_[0], width_ + gap_});
    return wide.Columns(0, width_);
  }
  float* row(std::int64_t index) { return values_.data() + index * (width_ + gap_); }
  float at(std::int64_t row, std::int64_t column) { return this->row(row)[column]; }

 private:
  Shape shape_;
  std::int64_t gap_;
  std::int64_t width_ = 1;
  std::vector<float> values_;
};

Floats RandomRows(std::int64_t rows, std::int64_t columns, std::int64_t gap = 0) {
  Floats x({rows, columns}, kUntouched, gap);
  std::mt19937 random(static_cast<unsigned>(rows * 7919 + columns));
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float scale = std::exp(normal(random));
    for (std::int64_t c = 0; c < columns; ++c) x.row(r)[c] = scale * normal(random);
  }
  return x;
}

/// Fails at the first element whose bits differ.
void ExpectSameBits(ConstTensorView expected, ConstTensorView actual) {
  ASSERT_EQ(expected.shape(), actual.shape());
  const std::int64_t rows = expected.size(0);
  const std::int64_t width = rows == 0 ? 0 : expected.shape().elements() / rows;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      const float a = expected.row<float>(r)[c];
      const float b = actual.row<float>(r)[c];
      ASSERT_EQ(std::bit_cast<std::uint32_t>(a), std::bit_cast<std::uint32_t>(b))
          << a << " against " << b << " at row " << r << ", element " << c;
    }
  }
}

class Workspace {
 public:
  Workspace(const MatrixLayout& layout, std::int64_t rows)
      : bytes_(MatmulWorkspaceBytes(layout, rows)) {
    std::fill(bytes_.data(), bytes_.data() + bytes_.size(), std::byte{0xee});
  }
  TensorView view() const { return {bytes_.data(), DType::kU8, {bytes_.size()}}; }

 private:
  AlignedBytes bytes_;
};

template <class Op>
void RunChecked(const Op& op) {
  Stream stream(Device::kCpu);
  Run(op, stream);
}

Matmul MatmulOf(const PackedShare& share, Floats& out, ConstTensorView x,
                const Workspace& workspace, float multiplier = 1.0f) {
  return {.out = out.view(),
          .x = x,
          .weight = share.matrix(),
          .multiplier = multiplier,
          .workspace = workspace.view()};
}

std::string Describe(WeightType type, std::int64_t k, std::int64_t n, std::int64_t groups) {
  return std::string(NameOf(type)) + " k " + std::to_string(k) + " n " + std::to_string(n) +
         " groups " + std::to_string(groups);
}

/// Runs once per instruction-set tier, and skips those that this CPU lacks.
class MatmulTier : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (GetParam() > BestCpuIsa()) GTEST_SKIP() << "this CPU has no " << NameOf(GetParam());
    ForceCpuIsa(GetParam());
  }
  void TearDown() override { ForceCpuIsa(BestCpuIsa()); }
};

INSTANTIATE_TEST_SUITE_P(Tiers, MatmulTier, testing::Values(CpuIsa::kPortable, CpuIsa::kAvx2),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

// If this fails, a tier computes other numbers than the specification, so that ranks on unlike CPUs
// disagree; or a row's bits change with the rows beside it, so that a token depends on the batch.
TEST_P(MatmulTier, HasTheBitsOfTheReferenceForAnyNumberOfRows) {
  constexpr std::int64_t kMostRows = 37;
  for (const WeightType type : kTypes) {
    for (const std::int64_t groups : {1, 8}) {
      if (groups > 1 && type != WeightType::kInt8) continue;
      for (const std::int64_t n : {1, 63, 64, 65, 200}) {
        for (const std::int64_t k : {1, 4, 15 * 8, 48, 512, 513, 1030}) {
          SCOPED_TRACE(Describe(type, k, n, groups));
          const RandomMatrix matrix(type, k, n, groups);
          const PackedShare share(matrix, matrix.LayoutByOutput({0, n}));
          Floats x = RandomRows(kMostRows, k);
          Floats expected({kMostRows, n});
          const Workspace workspace(share.matrix().layout, kMostRows);
          RunSpecification(MatmulOf(share, expected, x.view(), workspace));
          for (const std::int64_t rows : {0, 1, 2, 3, 4, 5, 7, 37}) {
            Floats out({rows, n});
            RunChecked(MatmulOf(share, out, x.view().Rows(0, rows), workspace));
            ExpectSameBits(expected.view().Rows(0, rows), out.view());
          }
          Floats last({1, n});
          RunChecked(MatmulOf(share, last, x.view().Rows(kMostRows - 1, 1), workspace));
          ExpectSameBits(expected.view().Rows(kMostRows - 1, 1), last.view());
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
      if (groups > 1 && type != WeightType::kInt8) continue;
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

// If this fails, tokens meet the wrong expert, an expert without tokens breaks the step, or rows
// that belong to nobody are overwritten.
TEST_P(MatmulTier, GroupedRowsMeetTheirExpert) {
  constexpr std::int64_t kRows = 48;
  std::vector<std::vector<std::int32_t>> plans = {
      {0, 0, 0, 0}, {0, 1, 1, 3}, {0, 40, 41, 45}, {0, 0, 17, 48}, {0, 5, 5, 5}};
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, 100, 150, 8, 6);
    const PackedShare up(matrix, matrix.LayoutByOutput({20, 140}, {2, 5}));
    const PackedShare down(matrix, matrix.LayoutByInput({3, 6}, {2, 5}));
    for (std::vector<std::int32_t>& plan : plans) {
      SCOPED_TRACE(Describe(type, 100, 150, 8));
      const ConstTensorView offsets(reinterpret_cast<const std::byte*>(plan.data()), DType::kI32,
                                    {4});
      {
        Floats x = RandomRows(kRows, 100, 4);
        Floats expected({kRows, 120});
        Floats out({kRows, 120});
        const Workspace workspace(up.matrix().layout, kRows);
        RunSpecification(GroupedMatmul{.out = expected.view(),
                                       .x = x.view(),
                                       .offsets = offsets,
                                       .weight = up.matrix(),
                                       .workspace = workspace.view()});
        RunChecked(GroupedMatmul{.out = out.view(),
                                 .x = x.view(),
                                 .offsets = offsets,
                                 .weight = up.matrix(),
                                 .workspace = workspace.view()});
        ExpectSameBits(expected.view(), out.view());
        for (std::int64_t r = plan[3]; r < kRows; ++r) ASSERT_EQ(out.at(r, 119), kUntouched);
        // The specification itself: an expert's rows are the dense product with its matrix.
        const PackedShare second(matrix, matrix.LayoutByOutput({20, 140}, {3, 4}));
        const std::int64_t count = plan[2] - plan[1];
        Floats dense({count, 120});
        RunSpecification(MatmulOf(second, dense, x.view().Rows(plan[1], count), workspace));
        ExpectSameBits(dense.view(), out.view().Rows(plan[1], count));
      }
      {
        const MatrixLayout& layout = down.matrix().layout;
        Floats x = RandomRows(kRows, layout.InputRows().size());
        Floats expected({2, kRows, 150});
        Floats out({2, kRows, 150});
        const Workspace workspace(layout, kRows);
        RunSpecification(GroupedMatmulPartials{.out = expected.view(),
                                               .x = x.view(),
                                               .offsets = offsets,
                                               .weight = down.matrix(),
                                               .workspace = workspace.view()});
        RunChecked(GroupedMatmulPartials{.out = out.view(),
                                         .x = x.view(),
                                         .offsets = offsets,
                                         .weight = down.matrix(),
                                         .workspace = workspace.view()});
        ExpectSameBits(expected.view(), out.view());
      }
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
          const double quantisation =
              type == WeightType::kInt8 ? weights * largest / 16383 * 0.51 : 0;
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

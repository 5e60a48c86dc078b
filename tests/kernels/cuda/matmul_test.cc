#include "kernels/matmul.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/cuda/product_gpu_test.h"

namespace jubal {
namespace {

class MatmulGpuTest : public ProductGpuTest {
 protected:
  /// What the specification computes on the CPU.
  std::vector<float> Specified(const PackedMatrix& weight, ConstTensorView x,
                               float multiplier = 1.0f) {
    const AlignedBytes workspace(MatmulWorkspaceBytes(weight.layout, x.size(0)));
    const TensorView bytes(workspace.data(), DType::kU8, {workspace.size()});
    if (weight.layout.split == Split::kByOutput) {
      Floats out({x.size(0), weight.layout.columns.size()});
      RunSpecification(Matmul{out.view(), x, weight, multiplier, bytes});
      return out.values();
    }
    Floats out({Planes(weight.layout.chunks), x.size(0), weight.layout.n});
    RunSpecification(MatmulPartials{out.view(), x, weight, bytes});
    return out.values();
  }

  std::vector<float> Computed(const PackedMatrix& weight, ConstTensorView x,
                              float multiplier = 1.0f) {
    const TensorView workspace = Workspace(weight.layout, x.size(0));
    if (weight.layout.split == Split::kByOutput) {
      const TensorView out = Allocate(DType::kF32, {x.size(0), weight.layout.columns.size()});
      Launch(Matmul{out, x, weight, multiplier, workspace});
      return ReadBack<float>(out);
    }
    const TensorView out =
        Allocate(DType::kF32, {Planes(weight.layout.chunks), x.size(0), weight.layout.n});
    Launch(MatmulPartials{out, x, weight, workspace});
    return ReadBack<float>(out);
  }

  static std::int64_t Planes(Range chunks) {
    return static_cast<std::int64_t>(MaximalSubtrees(chunks).size());
  }
};
INSTANTIATE_GPU_TEST(MatmulGpuTest);

/// The same elements without gaps.
Floats Dense(ConstTensorView x) {
  Floats dense({x.size(0), x.size(1)});
  for (std::int64_t r = 0; r < x.size(0); ++r) {
    std::copy(x.row<float>(r), x.row<float>(r) + x.size(1), &dense[r * x.size(1)]);
  }
  return dense;
}

/// What matmul.h says of f32 on a GPU.
float FloatProduct(const RandomMatrix& matrix, const float* x, std::int64_t k, std::int64_t n) {
  float sum = 0.0f;
  for (std::int64_t begin = 0; begin < k; begin += 512) {
    float run = 0.0f;
    for (std::int64_t i = begin; i < std::min(k, begin + 512); ++i) {
      run = std::fma(x[i], matrix.Stored(0, i, n), run);
    }
    sum = begin == 0 ? run : sum + run;
  }
  return sum;
}

// Breaks: answers of GPUs differ from those of CPUs; or a row's bits change with the rows beside
// it, so that a token depends on the batch, as every number of rows has another tile.
TEST_P(MatmulGpuTest, IntegersHaveTheBitsOfTheSpecificationForAnyNumberOfRows) {
  struct Case {
    std::int64_t k, n, groups, most;
  };
  for (const Case& c : {Case{1, 1, 1, 9}, Case{30, 64, 1, 17}, Case{513, 65, 1, 33},
                        Case{700, 130, 9, 130}, Case{1100, 70, 2, 66}, Case{2100, 64, 1, 66}}) {
    for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
      const RandomMatrix matrix(type, c.k, c.n, c.groups);
      const PackedShare share(matrix, matrix.LayoutByOutput({0, c.n}));
      const PackedMatrix weight = OnGpu(share.matrix());
      const Floats host_x = RandomRows(c.most, c.k);
      const ConstTensorView x = OnGpu(host_x);
      const std::vector<float> expected = Specified(share.matrix(), host_x.view());
      for (const std::int64_t rows : {0, 1, 3, 8, 9, 17, 33, 66, 130}) {
        if (rows > c.most) continue;
        SCOPED_TRACE(Describe(type, c.k, c.n, rows));
        ExpectSameBits(expected, Computed(weight, x.Rows(0, rows)));
      }
      const std::vector<float> last(expected.end() - c.n, expected.end());
      ExpectSameBits(last, Computed(weight, x.Rows(c.most - 1, 1)));
    }
  }
}

// Breaks: the order of f32 sums on a GPU, which must be that of CPUs up to 512 k and the written
// one beyond; routers, which are narrow, and everything wider.
TEST_P(MatmulGpuTest, FloatsHaveTheWrittenOrder) {
  for (const std::int64_t k : {1, 130, 512, 1050, 5000}) {
    for (const std::int64_t n : {1, 8, 9, 130}) {
      if (k == 5000 && n == 130) continue;
      const RandomMatrix matrix(WeightType::kF32, k, n, 1);
      const PackedShare share(matrix, matrix.LayoutByOutput({0, n}));
      const PackedMatrix weight = OnGpu(share.matrix());
      const Floats host_x = RandomRows(9, k);
      const ConstTensorView x = OnGpu(host_x);
      std::vector<float> expected;
      for (std::int64_t r = 0; r < 9; ++r) {
        for (std::int64_t c = 0; c < n; ++c) {
          expected.push_back(FloatProduct(matrix, &host_x[r * k], k, c));
        }
      }
      if (k <= 512) ExpectSameBits(Specified(share.matrix(), host_x.view()), expected);
      for (const std::int64_t rows : {0, 1, 3, 9}) {
        SCOPED_TRACE(Describe(WeightType::kF32, k, n, rows));
        ExpectSameBits(expected, Computed(weight, x.Rows(0, rows)));
      }
    }
  }
}

// Breaks: bf16 products lose a plane of x or part of k; or their bits change with the batch.
TEST_P(MatmulGpuTest, Bf16IsNearTheProductAndTheSameForAnyNumberOfRows) {
  constexpr std::int64_t kMost = 130;
  for (const std::int64_t k : {1, 15, 30, 600, 1100}) {
    constexpr std::int64_t kN = 70;
    const RandomMatrix matrix(WeightType::kBf16, k, kN, 1);
    const PackedShare share(matrix, matrix.LayoutByOutput({0, kN}));
    const PackedMatrix weight = OnGpu(share.matrix());
    const Floats host_x = RandomRows(kMost, k);
    const ConstTensorView x = OnGpu(host_x);
    const std::vector<float> all = Computed(weight, x);
    for (std::int64_t r = 0; r < kMost; ++r) {
      for (std::int64_t c = 0; c < kN; ++c) {
        double product = 0;
        double magnitude = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          const double term = static_cast<double>(host_x[r * k + i]) * matrix.Stored(0, i, c);
          product += term;
          magnitude += std::fabs(term);
        }
        // x_hi + x_lo has 16 bits of x. Each sum may be cut, not rounded, to 23 bits of the
        // largest.
        const double bound =
            magnitude * (std::exp2(-16) + static_cast<double>(k + 16) * std::exp2(-23));
        ASSERT_NEAR(all[static_cast<std::size_t>(r * kN + c)], product, bound) << k << " row " << r;
      }
    }
    for (const std::int64_t rows : {1, 8, 9, 17, 33}) {
      SCOPED_TRACE(Describe(WeightType::kBf16, k, kN, rows));
      ExpectSameBits(all, Computed(weight, x.Rows(0, rows)));
    }
    const std::vector<float> last(all.end() - kN, all.end());
    ExpectSameBits(last, Computed(weight, x.Rows(kMost - 1, 1)));
  }
}

// Breaks: a rank that owns columns in the middle of a block writes wrong ones or its neighbour's, a
// multiplier is lost, or rows with a stride are misread.
TEST_P(MatmulGpuTest, ComputesAnyRangeOfColumns) {
  constexpr std::int64_t kK = 130;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, kK, 200, 4);
    for (const Range columns : {Range{0, 0}, Range{5, 7}, Range{60, 70}, Range{64, 128},
                                Range{127, 199}, Range{130, 200}}) {
      const PackedShare share(matrix, matrix.LayoutByOutput(columns));
      const PackedMatrix weight = OnGpu(share.matrix());
      for (const std::int64_t rows : {2, 70}) {
        SCOPED_TRACE(Describe(type, kK, columns.size(), rows) + " from " +
                     std::to_string(columns.begin));
        const Floats wide = RandomRows(rows, kK + 9);
        const ConstTensorView host_x = wide.view().Columns(5, kK);
        const ConstTensorView x = OnGpu(wide).Columns(5, kK);
        const std::int64_t width = columns.size();
        const TensorView out = Allocate(DType::kF32, {rows, width + 3});
        Launch(Matmul{out.Columns(0, width), x, weight, 0.577f,
                      Workspace(share.matrix().layout, rows)});
        const std::vector<float> all = ReadBack<float>(out);
        const std::vector<float> expected = type == WeightType::kBf16
                                                ? Computed(weight, OnGpu(Dense(host_x)), 0.577f)
                                                : Specified(share.matrix(), host_x, 0.577f);
        std::vector<float> written;
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto row = all.begin() + r * (width + 3);
          written.insert(written.end(), row, row + width);
          for (std::int64_t gap = width; gap < width + 3; ++gap) ASSERT_TRUE(std::isnan(row[gap]));
        }
        ExpectSameBits(expected, written);
      }
    }
  }
}

// Breaks: partial products of a share of the chunks, whether each chunk has thread blocks of its
// own or one thread block adds up the tree.
TEST_P(MatmulGpuTest, PartialsHaveTheBitsOfTheSpecification) {
  struct Case {
    std::int64_t k, groups;
  };
  for (const WeightType type : {WeightType::kF32, WeightType::kInt8, WeightType::kInt4}) {
    for (const Case& c : {Case{4, 1}, Case{120, 8}, Case{1030, 3}}) {
      for (const Range chunks : {Range{0, 8}, Range{0, 1}, Range{3, 6}, Range{1, 8}, Range{4, 4}}) {
        if (c.k == 120 && chunks.begin > 0) continue;
        const RandomMatrix matrix(type, c.k, 70, c.groups);
        const PackedShare share(matrix, matrix.LayoutByInput(chunks));
        const PackedMatrix weight = OnGpu(share.matrix());
        for (const std::int64_t rows : {0, 2, 17, 130}) {
          if (rows == 130 && (c.k == 4 || chunks.end < 8)) continue;
          SCOPED_TRACE(Describe(type, c.k, 70, rows) + " chunks " + std::to_string(chunks.begin) +
                       " to " + std::to_string(chunks.end));
          const Floats x = RandomRows(rows, share.matrix().layout.InputRows().size());
          ExpectSameBits(Specified(share.matrix(), x.view()), Computed(weight, OnGpu(x)));
        }
      }
    }
  }
}

// Breaks: a chunk of several groups of more than one run, and whole groups beyond the first.
TEST_P(MatmulGpuTest, GroupsLongerThanARunHaveTheBitsOfTheSpecification) {
  const RandomMatrix matrix(WeightType::kInt8, 1700, 64, 2);
  const PackedShare share(matrix, matrix.LayoutByOutput({0, 64}));
  const PackedMatrix weight = OnGpu(share.matrix());
  const Floats x = RandomRows(66, 1700);
  ExpectSameBits(Specified(share.matrix(), x.view()), Computed(weight, OnGpu(x)));
}

// Breaks: a result's bits change with the number of ranks. Three of them hold two subtrees each but
// for the last.
TEST_P(MatmulGpuTest, ThreeRanksHaveTheBitsOfOne) {
  constexpr std::int64_t kK = 540;
  constexpr std::int64_t kN = 70;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, kK, kN, 8);
    for (const std::int64_t rows : {3, 130}) {
      SCOPED_TRACE(Describe(type, kK, kN, rows));
      const Floats host_x = RandomRows(rows, kK);
      const ConstTensorView x = OnGpu(host_x);
      const auto partials = [&](Range chunks) {
        const PackedShare share(matrix, matrix.LayoutByInput(chunks));
        const Range columns = share.matrix().layout.InputRows();
        return Computed(OnGpu(share.matrix()), x.Columns(columns.begin, columns.size()));
      };
      const std::vector<float> whole = partials({0, 8});
      const std::vector<float> first = partials(OwnedChunks(0, 3));   // {0, 1} {2}
      const std::vector<float> second = partials(OwnedChunks(1, 3));  // {3} {4, 5}
      const std::vector<float> third = partials(OwnedChunks(2, 3));   // {6, 7}
      const auto plane = static_cast<std::size_t>(rows * kN);
      std::vector<float> sums(plane);
      for (std::size_t i = 0; i < plane; ++i) {
        sums[i] = (first[i] + (first[plane + i] + second[i])) + (second[plane + i] + third[i]);
      }
      ExpectSameBits(whole, sums);
    }
  }
}

// Breaks: one of several products with a common input is wrong when they share a launch.
TEST_P(MatmulGpuTest, ProductsTogetherHaveTheBitsOfEachAlone) {
  constexpr std::int64_t kK = 100;
  for (const WeightType type : kTypes) {
    const RandomMatrix first(type, kK, 200, 4);
    const RandomMatrix second(type, kK, 70, 4);
    const PackedShare shares[] = {{first, first.LayoutByOutput({0, 200})},
                                  {second, second.LayoutByOutput({10, 10})},
                                  {second, second.LayoutByOutput({3, 70})}};
    for (const std::int64_t rows : {0, 1, 70}) {
      SCOPED_TRACE(Describe(type, kK, 200, rows));
      const Floats host_x = RandomRows(rows, kK);
      const ConstTensorView x = OnGpu(host_x);
      const TensorView workspace = Workspace(shares[0].matrix().layout, rows);
      std::vector<Matmul> products;
      for (const PackedShare& share : shares) {
        products.push_back(
            {.out = Allocate(DType::kF32, {rows, share.matrix().layout.columns.size()}),
             .x = x,
             .weight = OnGpu(share.matrix()),
             .multiplier = 0.5f,
             .workspace = workspace});
      }
      Launch(Matmuls{.products = products});
      for (std::size_t i = 0; i < products.size(); ++i) {
        ExpectSameBits(type == WeightType::kBf16
                           ? Computed(products[i].weight, x, 0.5f)
                           : Specified(shares[i].matrix(), host_x.view(), 0.5f),
                       ReadBack<float>(products[i].out));
      }
    }
  }
}

// Breaks: a rank that has its part of a larger matrix computes with other weights.
TEST_P(MatmulGpuTest, APartWithinAWholeMatrixHasTheBitsOfItsOwnPacking) {
  constexpr std::int64_t kK = 300;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, kK, 300, 5, 3);
    const PackedShare by_output(matrix, matrix.LayoutByOutput({0, 300}, {0, 3}));
    const PackedShare by_input(matrix, matrix.LayoutByInput({0, 8}, {0, 3}));
    const PackedMatrix output_on_gpu = OnGpu(by_output.matrix());
    const PackedMatrix input_on_gpu = OnGpu(by_input.matrix());
    std::vector<MatrixLayout> layouts;
    for (const Range columns : {Range{70, 200}, Range{128, 129}}) {
      layouts.push_back(matrix.LayoutByOutput(columns, {1, 2}));
    }
    layouts.push_back(matrix.LayoutByInput({3, 6}, {2, 3}));
    for (const MatrixLayout& layout : layouts) {
      const PackedShare own(matrix, layout);
      for (const std::int64_t rows : {5, 70}) {
        SCOPED_TRACE(Describe(type, kK, layout.columns.size(), rows));
        const Floats x = RandomRows(rows, layout.InputRows().size());
        const ConstTensorView on_gpu = OnGpu(x);
        ExpectSameBits(
            Computed(OnGpu(own.matrix()), on_gpu),
            Computed(
                PartOf(layout.split == Split::kByOutput ? output_on_gpu : input_on_gpu, layout),
                on_gpu));
      }
    }
  }
}

// Breaks: the ends of the ranges: 512 products of the largest integers, and longer sums, which must
// be flushed before they overflow.
TEST_P(MatmulGpuTest, LargestIntegersAreExact) {
  constexpr std::int64_t kK = 1024;
  std::vector<std::byte> source(kK * 2);
  for (std::int64_t i = 0; i < kK; ++i) {
    source[static_cast<std::size_t>(i * 2)] = std::byte{127};
    source[static_cast<std::size_t>(i * 2 + 1)] = std::byte{0x80};  // −128
  }
  const std::uint16_t scales[2] = {0x3f80, 0x3f80};
  const MatrixLayout layout{
      .type = WeightType::kInt8, .k = kK, .n = 2, .group_rows = kK, .columns = {0, 2}};
  const AlignedBytes data(layout.WeightBytes());
  const AlignedBytes packed_scales(layout.ScaleBytes());
  PackMatrix(layout, 0,
             {.data = source.data(), .scales = reinterpret_cast<const std::byte*>(scales)},
             data.data(), reinterpret_cast<float*>(packed_scales.data()));
  const PackedMatrix weight =
      OnGpu(PackedMatrix{.layout = layout,
                         .data = data.data(),
                         .scales = reinterpret_cast<const float*>(packed_scales.data())});
  for (const std::int64_t rows : {1, 66}) {
    for (const float x : {16383.0f, -16383.0f}) {
      const std::vector<float> out = Computed(weight, OnGpu(Floats({rows, kK}, x)));
      for (std::int64_t r = 0; r < rows; ++r) {
        EXPECT_EQ(out[static_cast<std::size_t>(r * 2)], 2 * static_cast<float>(512 * 127) * x);
        EXPECT_EQ(out[static_cast<std::size_t>(r * 2 + 1)], -2 * static_cast<float>(512 * 128) * x);
      }
    }
  }
}

// Breaks: a row with an infinity or a NaN spoils its neighbours; or rows of zeros and denormals,
// which padding tokens have, turn into NaN.
TEST_P(MatmulGpuTest, OddRowsStayAlone) {
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  constexpr std::int64_t kK = 90;
  constexpr std::int64_t kN = 66;
  for (const WeightType type : kTypes) {
    const RandomMatrix matrix(type, kK, kN, 1);
    const PackedShare share(matrix, matrix.LayoutByOutput({0, kN}));
    const PackedMatrix weight = OnGpu(share.matrix());
    for (const std::int64_t rows : {6, 70}) {
      SCOPED_TRACE(Describe(type, kK, kN, rows));
      Floats x = RandomRows(rows, kK);
      const std::vector<float> before = Computed(weight, OnGpu(x));
      x[0 * kK + 3] = std::numeric_limits<float>::infinity();
      x[1 * kK + 89] = std::numeric_limits<float>::quiet_NaN();
      x[2 * kK + 17] = -std::numeric_limits<float>::quiet_NaN();
      for (std::int64_t c = 0; c < kK; ++c) {
        x[3 * kK + c] = 0.0f;
        x[4 * kK + c] = static_cast<float>(c % 2 == 0 ? 100000 : -1) * kTiny;
      }
      const std::vector<float> after = Computed(weight, OnGpu(x));
      for (std::int64_t c = 0; c < kN; ++c) {
        EXPECT_FALSE(std::isfinite(after[static_cast<std::size_t>(c)]));
        EXPECT_TRUE(std::isnan(after[static_cast<std::size_t>(kN + c)]));
        EXPECT_TRUE(std::isnan(after[static_cast<std::size_t>(2 * kN + c)]));
        EXPECT_EQ(after[static_cast<std::size_t>(3 * kN + c)], 0.0f);
      }
      if (type != WeightType::kBf16) {
        const std::vector<float> specified = Specified(share.matrix(), x.view());
        ExpectSameBits({specified.begin() + 3 * kN, specified.end()},
                       {after.begin() + 3 * kN, after.end()});
      }
      ExpectSameBits({before.begin() + 5 * kN, before.end()},
                     {after.begin() + 5 * kN, after.end()});
    }
  }
}

// Breaks: operands on different devices reach a kernel.
TEST_P(MatmulGpuTest, CheckRefusesOperandsOfTwoDevices) {
  const RandomMatrix matrix(WeightType::kInt8, 64, 64, 1);
  const PackedShare share(matrix, matrix.LayoutByOutput({0, 64}));
  Floats x = RandomRows(1, 64);
  const MatrixLayout& layout = share.matrix().layout;
  Matmul op{.out = Allocate(DType::kF32, {1, 64}),
            .x = OnGpu(x),
            .weight = OnGpu(share.matrix()),
            .workspace = Workspace(layout, 1)};
  Check(op);
  op.weight = share.matrix();
  EXPECT_DEATH(Check(op), "check failed");
  op.weight = OnGpu(share.matrix());
  op.x = x.view();
  EXPECT_DEATH(Check(op), "check failed");
}

}  // namespace
}  // namespace jubal

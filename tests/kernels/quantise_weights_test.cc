#include "kernels/quantise_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "tests/kernels/random_matrix.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace jubal {
namespace {

double RoundedToBf16(double value) {
  const double step = std::ldexp(1.0, std::ilogb(value) - 7);
  return value == 0 ? 0 : std::nearbyint(value / step) * step;
}

/// What QuantiseWeights makes of one expert's columns.
class Rounded {
 public:
  Rounded(const RandomMatrix& matrix, const StoredMatrix& stored, Range columns, WeightType type,
          std::int64_t group_rows)
      : matrix_(matrix), columns_(columns) {
    const std::int64_t groups = HasScales(type) ? (stored.k + group_rows - 1) / group_rows : 0;
    data.resize(static_cast<std::size_t>(stored.k * columns.size() * (HasScales(type) ? 1 : 2)));
    scales.resize(static_cast<std::size_t>(groups * columns.size() * 2));
    QuantiseWeights(stored, columns, type, group_rows, data.data(), scales.data());
  }

  double Weight(std::int64_t k, std::int64_t column) const { return matrix_.Weight(0, k, column); }
  float Bf16(std::int64_t k, std::int64_t column) const { return At(data, k, column); }
  int Level(std::int64_t k, std::int64_t column) const {
    return static_cast<std::int8_t>(data[Index(k, column)]);
  }
  double Scale(std::int64_t group, std::int64_t column) const { return At(scales, group, column); }

  /// Σ (w − q · s)² over the rows of a group, for any s.
  double ErrorWith(double scale, Range rows, std::int64_t column, double low, double high) const {
    double sum = 0.0;
    for (std::int64_t k = rows.begin; k < rows.end; ++k) {
      const double level =
          scale == 0 ? 0 : std::clamp(std::nearbyint(Weight(k, column) / scale), low, high);
      sum += std::pow(Weight(k, column) - level * scale, 2);
    }
    return sum;
  }

  std::vector<std::byte> data;
  std::vector<std::byte> scales;

 private:
  std::size_t Index(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * columns_.size() + column - columns_.begin);
  }
  float At(const std::vector<std::byte>& values, std::int64_t row, std::int64_t column) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, values.data() + Index(row, column) * 2, 2);
    return std::bit_cast<float>(bits << 16);
  }

  const RandomMatrix& matrix_;
  const Range columns_;
};

StoredMatrix Stored(const RandomMatrix& matrix, WeightType type) {
  const MatrixLayout layout = matrix.LayoutByOutput({0, 0});
  return {matrix.Unpacked(), type, layout.group_rows, layout.k, layout.n};
}

/// Calls `check` for many matrices of each source type, with a Rounded of some of their columns.
template <class Check>
void ForEachRounding(WeightType type, std::int64_t group_rows, Check check) {
  for (const WeightType from : {WeightType::kF32, WeightType::kBf16, WeightType::kInt8}) {
    if (RowsPerStep(from) >= RowsPerStep(type)) continue;
    for (const bool output_major : {false, true}) {
      for (const std::int64_t k : {1, 64, 130, 600}) {
        for (const std::int64_t n : {1, 200}) {
          SCOPED_TRACE(std::string(NameOf(from)) + " k " + std::to_string(k) + " n " +
                       std::to_string(n) + (output_major ? " output-major" : ""));
          const RandomMatrix matrix(from, k, n, 3, 1, output_major);
          const Range columns{n / 3, n - n / 5};
          const std::int64_t rows = group_rows == 0 ? k : group_rows;
          check(Rounded(matrix, Stored(matrix, from), columns, type, rows), k, columns, rows);
        }
      }
    }
  }
}

// If this fails, a bf16 pack of an f32 model is less exact than bf16 can be.
TEST(QuantiseWeights, Bf16IsTheNearest) {
  ForEachRounding(WeightType::kBf16, 0,
                  [](const Rounded& rounded, std::int64_t k, Range columns, std::int64_t) {
                    for (std::int64_t row = 0; row < k; ++row) {
                      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
                        ASSERT_EQ(rounded.Bf16(row, c), RoundedToBf16(rounded.Weight(row, c)));
                      }
                    }
                  });
}

// A tie goes to the even neighbour, and nothing becomes infinite.
TEST(QuantiseWeights, Bf16TiesAndLimits) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::vector<std::uint32_t> in{0x3f808000,
                                      0x3f818000,
                                      0x3f808001,
                                      0xbf808000,
                                      std::bit_cast<std::uint32_t>(kLargest),
                                      std::bit_cast<std::uint32_t>(-kLargest)};
  const std::vector<std::uint16_t> expected{0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x7f7f, 0xff7f};
  std::vector<std::uint16_t> out(in.size());
  const StoredMatrix stored{{.data = reinterpret_cast<const std::byte*>(in.data())},
                            WeightType::kF32,
                            0,
                            static_cast<std::int64_t>(in.size()),
                            1};
  QuantiseWeights(stored, {0, 1}, WeightType::kBf16, 0, reinterpret_cast<std::byte*>(out.data()),
                  nullptr);
  EXPECT_EQ(out, expected);
}

// If this fails, an int8 pack errs by more than its steps allow.
TEST(QuantiseWeights, Int8IsWithinHalfAStep) {
  for (const std::int64_t group_rows : {0, 75}) {
    ForEachRounding(WeightType::kInt8, group_rows,
                    [](const Rounded& rounded, std::int64_t k, Range columns, std::int64_t rows) {
                      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
                        for (std::int64_t begin = 0; begin < k; begin += rows) {
                          double most = 0.0;
                          for (std::int64_t row = begin; row < std::min(k, begin + rows); ++row) {
                            most = std::max(most, std::fabs(rounded.Weight(row, c)));
                          }
                          const double scale = rounded.Scale(begin / rows, c);
                          ASSERT_NEAR(scale, most / 127, most / 127 / 256);
                          for (std::int64_t row = begin; row < std::min(k, begin + rows); ++row) {
                            const int level = rounded.Level(row, c);
                            ASSERT_LE(std::abs(level), 127);
                            ASSERT_LE(std::fabs(rounded.Weight(row, c) - level * scale),
                                      scale / 2 * (1 + 1e-5));
                          }
                        }
                      }
                    });
  }
}

// If this fails, an int4 pack is worse than it says: some scale of the set would leave less error,
// or a value does not go to the level that is nearest.
TEST(QuantiseWeights, Int4TakesTheScaleOfLeastError) {
  for (const std::int64_t group_rows : {64, 512}) {
    ForEachRounding(WeightType::kInt4, group_rows,
                    [](const Rounded& rounded, std::int64_t k, Range columns, std::int64_t rows) {
                      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
                        for (std::int64_t begin = 0; begin < k; begin += rows) {
                          const Range group{begin, std::min(k, begin + rows)};
                          double most = 0.0;
                          for (std::int64_t row = group.begin; row < group.end; ++row) {
                            const double weight = rounded.Weight(row, c);
                            if (std::fabs(weight) > std::fabs(most)) most = weight;
                          }
                          const double scale = rounded.Scale(begin / rows, c);
                          double error = 0.0;
                          for (std::int64_t row = group.begin; row < group.end; ++row) {
                            const int level = rounded.Level(row, c);
                            ASSERT_TRUE(level >= -8 && level <= 7) << level;
                            const double off = rounded.Weight(row, c) - level * scale;
                            const bool cut =
                                (level == -8 && off * scale < 0) || (level == 7 && off * scale > 0);
                            if (!cut) {
                              ASSERT_LE(std::fabs(off), std::fabs(scale) / 2 * (1 + 1e-5));
                            }
                            error += off * off;
                          }
                          for (const double level : {-8.0, -8.5, -9.0, -9.5, 7.0}) {
                            const double other =
                                rounded.ErrorWith(RoundedToBf16(most / level), group, c, -8, 7);
                            ASSERT_LE(error, other * (1 + 1e-4) + 1e-12 * most * most) << level;
                          }
                        }
                      }
                    });
  }
}

// A column that a pruned model zeroed must stay zero.
TEST(QuantiseWeights, ZerosHaveNoScale) {
  const std::vector<float> zeros(100, 0.0f);
  const StoredMatrix stored{
      {.data = reinterpret_cast<const std::byte*>(zeros.data())}, WeightType::kF32, 0, 100, 1};
  for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
    std::vector<std::byte> data(100, std::byte{1});
    std::vector<std::byte> scales(4, std::byte{1});
    QuantiseWeights(stored, {0, 1}, type, 50, data.data(), scales.data());
    EXPECT_EQ(data, std::vector<std::byte>(100));
    EXPECT_EQ(scales, std::vector<std::byte>(4));
  }
}

#ifdef _OPENMP
// Two people who pack the same model must get the same file.
TEST(QuantiseWeights, ThreadsDoNotShow) {
  const RandomMatrix matrix(WeightType::kF32, 300, 500, 1);
  for (const WeightType type : {WeightType::kBf16, WeightType::kInt8, WeightType::kInt4}) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    const Rounded one(matrix, Stored(matrix, WeightType::kF32), {3, 490}, type, 64);
    omp_set_num_threads(7);
    const Rounded seven(matrix, Stored(matrix, WeightType::kF32), {3, 490}, type, 64);
    omp_set_num_threads(before);
    EXPECT_EQ(one.data, seven.data);
    EXPECT_EQ(one.scales, seven.scales);
  }
}
#endif

}  // namespace
}  // namespace jubal

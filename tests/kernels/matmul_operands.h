#ifndef JUBAL_TESTS_KERNELS_MATMUL_OPERANDS_H_
#define JUBAL_TESTS_KERNELS_MATMUL_OPERANDS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/run.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kInt8,
                                 WeightType::kInt4};
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

inline Floats RandomRows(std::int64_t rows, std::int64_t columns, std::int64_t gap = 0) {
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
inline void ExpectSameBits(ConstTensorView expected, ConstTensorView actual) {
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
      : Workspace(MatmulWorkspaceBytes(layout, rows)) {}
  explicit Workspace(std::int64_t bytes) : bytes_(bytes) {
    std::fill(bytes_.data(), bytes_.data() + bytes_.size(), std::byte{0xee});
  }
  TensorView view() const { return {bytes_.data(), DType::kU8, {bytes_.size()}}; }

 private:
  AlignedBytes bytes_;
};

template <class Op>
void RunChecked(const Op& op) {
  Stream stream;
  Run(op, stream);
}

inline Matmul MatmulOf(const PackedShare& share, Floats& out, ConstTensorView x,
                       const Workspace& workspace, float multiplier = 1.0f) {
  return {.out = out.view(),
          .x = x,
          .weight = share.matrix(),
          .multiplier = multiplier,
          .workspace = workspace.view()};
}

inline std::string Describe(WeightType type, std::int64_t k, std::int64_t n, std::int64_t groups) {
  return std::string(NameOf(type)) + " k " + std::to_string(k) + " n " + std::to_string(n) +
         " groups " + std::to_string(groups);
}

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_MATMUL_OPERANDS_H_

#ifndef JUBAL_TESTS_KERNELS_CUDA_PRODUCT_GPU_TEST_H_
#define JUBAL_TESTS_KERNELS_CUDA_PRODUCT_GPU_TEST_H_

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/matmul.h"
#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kInt8,
                                 WeightType::kInt4};

/// Rows of unlike magnitudes.
inline Floats RandomRows(std::int64_t rows, std::int64_t columns) {
  Floats x = RandomFloats({rows, columns}, static_cast<std::uint32_t>(rows * 7919 + columns));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) x[r * columns + c] *= 0.1f + static_cast<float>(r);
  }
  return x;
}

inline std::string Describe(WeightType type, std::int64_t k, std::int64_t n, std::int64_t rows) {
  return std::string(NameOf(type)) + " k " + std::to_string(k) + " n " + std::to_string(n) +
         " rows " + std::to_string(rows);
}

/// Fails at the first of the `actual` elements whose bits differ; `expected` may have more.
inline void ExpectSameBits(const std::vector<float>& expected, const std::vector<float>& actual) {
  ASSERT_GE(expected.size(), actual.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(expected[i]), std::bit_cast<std::uint32_t>(actual[i]))
        << expected[i] << " against " << actual[i] << " at element " << i;
  }
}

/// A test of a product's GPU form. Workspaces have exactly the promised size: what lies behind them
/// must be untouched in the end.
class ProductGpuTest : public GpuTest {
 protected:
  using GpuTest::OnGpu;

  /// A copy of the matrix, which is not part of another, on the GPU.
  PackedMatrix OnGpu(const PackedMatrix& host) {
    PackedMatrix matrix = host;
    matrix.device = Device::kCuda;
    matrix.data = BytesOnGpu(host.data, host.layout.WeightBytes());
    matrix.scales = reinterpret_cast<const float*>(
        BytesOnGpu(reinterpret_cast<const std::byte*>(host.scales), host.layout.ScaleBytes()));
    return matrix;
  }
  TensorView Workspace(std::int64_t bytes) {
    const TensorView guarded = Allocate(DType::kU8, {bytes + kGuard});
    guards_.push_back(guarded.Rows(bytes, kGuard));
    return guarded.Rows(0, bytes);
  }
  TensorView Workspace(const MatrixLayout& layout, std::int64_t rows) {
    return Workspace(MatmulWorkspaceBytes(layout, rows, Device::kCuda));
  }

  void TearDown() override {
    for (const TensorView& guard : guards_) {
      for (const std::uint8_t byte : ReadBack<std::uint8_t>(guard)) {
        ASSERT_EQ(byte, 0xff) << "something wrote behind its workspace";
      }
    }
  }

 private:
  static constexpr std::int64_t kGuard = 64;

  const std::byte* BytesOnGpu(const std::byte* bytes, std::int64_t size) {
    const TensorView view = Allocate(DType::kU8, {size});
    Launch(Copy{.out = view, .x = ConstTensorView(bytes, DType::kU8, {size})});
    return view.raw();
  }

  std::vector<TensorView> guards_;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_CUDA_PRODUCT_GPU_TEST_H_

#include "kernels/rms_norm.h"

#include <cmath>

namespace jubal {
namespace {

constexpr int kLanes = 8;

/// Element i is added to lane i mod 8 and the lanes are added as a tree, so that the sum
/// vectorises. In double each square is exact.
double SumOfSquares(const float* x, std::int64_t n) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const double value = x[i];
    lanes[lane] += value * value;
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace

void Check(const RmsNorm& op) {
  CHECK(op.out.dtype() == DType::kF32 && op.x.dtype() == DType::kF32);
  CHECK(op.scale.dtype() == DType::kF32 && op.scale.dense());
  CHECK_EQ(op.x.rank(), 2);
  CHECK(op.out.shape() == op.x.shape());
  CHECK(op.scale.shape() == (Shape{op.x.size(1)}));
  CHECK(op.epsilon > 0.0f);
}

void RunOnCpu(const RmsNorm& op) {
  const std::int64_t tokens = op.x.size(0);
  const std::int64_t hidden = op.x.size(1);
  const float* scale = op.scale.data<float>();
#pragma omp parallel for if (tokens > 4)
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* x = op.x.row<float>(t);
    float* out = op.out.row<float>(t);
    const double mean = SumOfSquares(x, hidden) / static_cast<double>(hidden);
    const auto inverse = static_cast<float>(1.0 / std::sqrt(mean + op.epsilon));
    for (std::int64_t i = 0; i < hidden; ++i) out[i] = scale[i] * inverse * x[i];
  }
}

}  // namespace jubal

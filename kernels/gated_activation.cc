#include "kernels/gated_activation.h"

#include "kernels/float_math.h"

namespace jubal {
namespace {

// Both activations are x · sigmoid(y): (1 + tanh(z)) / 2 = 1 / (1 + e^−2z). In this form the
// result keeps its relative accuracy where 1 + tanh(z) would cancel.

void GeluTanh(float* out, const float* gate, const float* up, std::int64_t n) {
  constexpr float kMinusTwoRootTwoOverPi = -1.5957691216057308f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float minus_two_z = kMinusTwoRootTwoOverPi * (x + 0.044715f * (x * x * x));
    out[i] = x / (1.0f + FastExp(minus_two_z)) * up[i];
  }
}

void Silu(float* out, const float* gate, const float* up, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + FastExp(-gate[i])) * up[i];
}

}  // namespace

void Check(const GatedActivation& op) {
  CHECK(op.out.dtype() == DType::kF32 && op.gate.dtype() == DType::kF32);
  CHECK(op.up.dtype() == DType::kF32 && op.rows.dtype() == DType::kI32);
  CHECK_EQ(op.out.rank(), 2);
  CHECK(op.gate.shape() == op.out.shape() && op.up.shape() == op.out.shape());
  CHECK(op.rows.shape() == (Shape{1}));
}

void RunOnCpu(const GatedActivation& op) {
  const std::int64_t rows = *op.rows.data<std::int32_t>();
  CHECK(rows >= 0 && rows <= op.out.size(0));
  const std::int64_t n = op.out.size(1);
  constexpr std::int64_t kBlock = 1024;  // columns of one task: one row already feeds all threads
  const std::int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for collapse(2) if (rows * n > 4 * kBlock)
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t begin = b * kBlock;
      const std::int64_t count = b + 1 < blocks ? kBlock : n - begin;
      float* out = op.out.row<float>(r) + begin;
      const float* gate = op.gate.row<float>(r) + begin;
      const float* up = op.up.row<float>(r) + begin;
      op.activation == Activation::kGeluTanh ? GeluTanh(out, gate, up, count)
                                             : Silu(out, gate, up, count);
    }
  }
}

}  // namespace jubal

#include "kernels/gated_activation.h"

#include "kernels/float_math.h"

namespace jubal {
namespace {

// Both activations are x · sigmoid(y): (1 + tanh(z)) / 2 = 1 / (1 + e^−2z). In this form the
// result keeps its relative accuracy where 1 + tanh(z) would cancel.

void GeluTanh(const float* gate, const float* up, std::int64_t count, float* out) {
  constexpr float kMinusTwoRootTwoOverPi = -1.5957691216057308f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float x = gate[i];
    const float minus_two_z = kMinusTwoRootTwoOverPi * (x + 0.044715f * (x * x * x));
    out[i] = x / (1.0f + FastExp(minus_two_z)) * up[i];
  }
}

void Silu(const float* gate, const float* up, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + FastExp(-gate[i])) * up[i];
}

}  // namespace

void ApplyGatedActivation(Activation activation, const float* gate, const float* up,
                          std::int64_t count, float* out) {
  switch (activation) {
    case Activation::kGeluTanh:
      GeluTanh(gate, up, count, out);
      return;
    case Activation::kSilu:
      Silu(gate, up, count, out);
      return;
  }
}

}  // namespace jubal

#ifndef JUBAL_KERNELS_GATED_ACTIVATION_H_
#define JUBAL_KERNELS_GATED_ACTIVATION_H_

#include "kernels/tensor.h"

namespace jubal {

/// gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), jax.nn.gelu's default (Grok-1);
/// silu(x) = x / (1 + e^−x) (Mixtral).
enum class Activation : std::uint8_t { kGeluTanh, kSilu };

/// out = activation(gate) ⊙ up, for the first rows[0] rows.
struct GatedActivation {
  TensorView out;        // [max rows, n] f32; may be gate or up
  ConstTensorView gate;  // [max rows, n] f32
  ConstTensorView up;    // [max rows, n] f32
  ConstTensorView rows;  // [1] i32
  Activation activation = Activation::kGeluTanh;
};

void Check(const GatedActivation& op);
void RunOnCpu(const GatedActivation& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_GATED_ACTIVATION_H_

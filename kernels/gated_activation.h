#ifndef JUBAL_KERNELS_GATED_ACTIVATION_H_
#define JUBAL_KERNELS_GATED_ACTIVATION_H_

#include <cstdint>

namespace jubal {

/// gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), jax.nn.gelu's default (Grok-1);
/// silu(x) = x / (1 + e^−x) (Mixtral).
enum class Activation : std::uint8_t { kGeluTanh, kSilu };

/// out[i] = activation(gate[i]) · up[i]. `out` may be gate or up.
void ApplyGatedActivation(Activation activation, const float* gate, const float* up,
                          std::int64_t count, float* out);

}  // namespace jubal

#endif  // JUBAL_KERNELS_GATED_ACTIVATION_H_

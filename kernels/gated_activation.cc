#include "kernels/gated_activation.h"

#include "kernels/matmul_tiles.h"

namespace jubal {

void ApplyGatedActivation(Activation activation, const float* gate, const float* up,
                          std::int64_t count, float* out) {
  const MatmulTiles& tiles = ActiveMatmulTiles();
  switch (activation) {
    case Activation::kGeluTanh:
      tiles.gelu_tanh(gate, up, count, out);
      return;
    case Activation::kSilu:
      tiles.silu(gate, up, count, out);
      return;
  }
}

}  // namespace jubal

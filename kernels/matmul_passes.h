#ifndef JUBAL_KERNELS_MATMUL_PASSES_H_
#define JUBAL_KERNELS_MATMUL_PASSES_H_

#include <cstdint>

#include "kernels/float_math.h"

namespace jubal {

// Passes over a block's sums, [rows][64] or flat. Each tier's translation unit has functions of its
// own of them, for its own instructions: static, so that the linker has no copy to pick from.

/// sums[r][c] += flushes[r][c] · scales[c]
[[maybe_unused]] static void AddScaledPass(const float* __restrict flushes,
                                           const float* __restrict scales, std::int64_t rows,
                                           float* __restrict sums) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < 64; ++c) sums[r * 64 + c] += flushes[r * 64 + c] * scales[c];
  }
}

/// sums[i] *= factor
[[maybe_unused]] static void ScalePass(float factor, std::int64_t count, float* __restrict sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] *= factor;
}

/// sums[i] += x[i]
[[maybe_unused]] static void AddPass(const float* __restrict x, std::int64_t count,
                                     float* __restrict sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

// Both activations are x · sigmoid(y): (1 + tanh(z)) / 2 = 1 / (1 + e^−2z). In this form the
// result keeps its relative accuracy where 1 + tanh(z) would cancel.

/// out[i] = gelu_tanh(gate[i]) · up[i]; out may be gate or up.
[[maybe_unused]] static void GeluTanhPass(const float* gate, const float* up, std::int64_t count,
                                          float* out) {
  constexpr float kMinusTwoRootTwoOverPi = -1.5957691216057308f;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    const float x = gate[i];
    const float minus_two_z = kMinusTwoRootTwoOverPi * (x + 0.044715f * (x * x * x));
    out[i] = x / (1.0f + FastExp(minus_two_z)) * up[i];
  }
}

/// out[i] = silu(gate[i]) · up[i]; out may be gate or up.
[[maybe_unused]] static void SiluPass(const float* gate, const float* up, std::int64_t count,
                                      float* out) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = gate[i] / (1.0f + FastExp(-gate[i])) * up[i];
  }
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_MATMUL_PASSES_H_

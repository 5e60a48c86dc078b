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

/// out[i] = gelu_tanh(gate[i]) · up[i]; out may be gate or up.
[[maybe_unused]] static void GeluTanhPass(const float* gate, const float* up, std::int64_t count,
                                          float* out) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) out[i] = GeluTanh(gate[i]) * up[i];
}

/// out[i] = silu(gate[i]) · up[i]; out may be gate or up.
[[maybe_unused]] static void SiluPass(const float* gate, const float* up, std::int64_t count,
                                      float* out) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) out[i] = Silu(gate[i]) * up[i];
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_MATMUL_PASSES_H_

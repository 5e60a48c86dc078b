#include <bit>
#include <cmath>

#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kColumns = 64;

std::uint32_t LargestMagnitude(const float* x, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

std::int32_t Quantise(const float* x, std::int64_t count, float scale, std::int16_t* a) {
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float ratio = std::nearbyint(x[i] / scale);
    const float clamped = ratio > kLargestActivation    ? kLargestActivation
                          : ratio < -kLargestActivation ? -kLargestActivation
                                                        : ratio;
    a[i] = static_cast<std::int16_t>(clamped);
    sum += a[i];
  }
  return sum;
}

void Int8(const Int8Panel& panel) {
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    std::int32_t dots[kColumns] = {};
    const std::int16_t* x = panel.x + r * panel.x_stride;
    for (std::int64_t step = 0; step < panel.steps; ++step) {
      const std::uint8_t* w = panel.weights + step * kColumns * 4;
      for (std::int64_t c = 0; c < kColumns; ++c) {
        for (std::int64_t i = 0; i < 4; ++i) dots[c] += w[c * 4 + i] * x[step * 4 + i];
      }
    }
    const std::int32_t correction = panel.corrections[r * panel.corrections_stride];
    for (std::int64_t c = 0; c < kColumns; ++c) {
      panel.sums[r * kColumns + c] += static_cast<float>(dots[c] - correction);
    }
  }
}

void F32(const FloatPanel& panel) {
  const auto* weights = reinterpret_cast<const float*>(panel.weights);
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    float* sums = panel.sums + r * kColumns;
    for (std::int64_t k = 0; k < panel.k; ++k) {
      const float x = panel.x[r * panel.x_stride + k];
      for (std::int64_t c = 0; c < panel.columns; ++c) {
        sums[c] = std::fma(x, weights[k * kColumns + c], sums[c]);
      }
    }
  }
}

void Bf16(const FloatPanel& panel) {
  const auto* weights = reinterpret_cast<const std::uint16_t*>(panel.weights);
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    float* sums = panel.sums + r * kColumns;
    for (std::int64_t k = 0; k < panel.k; ++k) {
      const float x = panel.x[r * panel.x_stride + k];
      for (std::int64_t c = 0; c < panel.columns; ++c) {
        const std::uint32_t bits = weights[(k / 2 * kColumns + c) * 2 + k % 2];
        sums[c] = std::fma(x, std::bit_cast<float>(bits << 16), sums[c]);
      }
    }
  }
}

}  // namespace

const MatmulTiles kPortableMatmulTiles = {.largest_magnitude = LargestMagnitude,
                                          .quantise = Quantise,
                                          .int8 = Int8,
                                          .bf16 = Bf16,
                                          .f32 = F32};

}  // namespace jubal

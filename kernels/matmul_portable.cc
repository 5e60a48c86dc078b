#include <bit>
#include <cmath>

#include "kernels/matmul_passes.h"
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

std::int32_t Quantise(const float* x, std::int64_t count, float scale, std::byte* a) {
  auto* values = reinterpret_cast<std::int16_t*>(a);
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float ratio = std::nearbyint(x[i] / scale);
    const float clamped = ratio > kLargestActivation    ? kLargestActivation
                          : ratio < -kLargestActivation ? -kLargestActivation
                                                        : ratio;
    values[i] = static_cast<std::int16_t>(clamped);
    sum += values[i];
  }
  for (std::int64_t i = count; i % 4 != 0; ++i) values[i] = 0;
  return sum;
}

void Int8(const IntegerPanel& panel) {
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    std::int32_t dots[kColumns] = {};
    const auto* x = reinterpret_cast<const std::int16_t*>(panel.x + r * panel.x_stride);
    for (std::int64_t step = 0; step < panel.steps; ++step) {
      const std::uint8_t* w = panel.weights + step * kColumns * 4;
      for (std::int64_t c = 0; c < kColumns; ++c) {
        for (std::int64_t i = 0; i < 4; ++i) dots[c] += w[c * 4 + i] * x[step * 4 + i];
      }
    }
    const std::int32_t correction = kInt8Offset * panel.sums_of_x[r * panel.sums_of_x_stride];
    for (std::int64_t c = 0; c < kColumns; ++c) {
      panel.sums[r * kColumns + c] += static_cast<float>(dots[c] - correction);
    }
  }
}

void Int4(const IntegerPanel& panel) {
  const std::int64_t groups = panel.steps / panel.group_steps;
  for (std::int64_t r = 0; r < panel.rows; ++r) {
    const std::uint8_t* w = panel.weights;
    const auto* x = reinterpret_cast<const std::int16_t*>(panel.x + r * panel.x_stride);
    for (std::int64_t group = 0; group < groups; ++group) {
      std::int32_t dots[kColumns] = {};
      for (std::int64_t step = 0; step < panel.group_steps; step += 2) {
        for (std::int64_t c = 0; c < kColumns; ++c) {
          for (std::int64_t i = 0; i < 4; ++i) {
            dots[c] += (w[c * 4 + i] & 15) * x[i] + (w[c * 4 + i] >> 4) * x[4 + i];
          }
        }
        w += kColumns * 4;
        x += 8;
      }
      const std::int32_t correction =
          kInt4Offset * panel.sums_of_x[r * panel.sums_of_x_stride + group];
      const float* scales = panel.scales + group * panel.scales_stride;
      for (std::int64_t c = 0; c < kColumns; ++c) {
        panel.sums[r * kColumns + c] += static_cast<float>(dots[c] - correction) * scales[c];
      }
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

// Peaks. Which registers a compiler uses is its own affair: the tiles run over weights in L1.

constexpr std::int64_t kPeakSteps = 16;

std::int64_t IntegerPeak(std::int64_t repetitions) {
  const std::uint8_t weights[kPeakSteps * kColumns * 4] = {1, 2, 3};
  const std::int16_t x[kPeakSteps * 4] = {3, 2, 1};
  const std::int32_t sum_of_x = 6;
  float sums[kColumns] = {};
  for (std::int64_t i = 0; i < repetitions; ++i) {
    Int8({.weights = weights,
          .steps = kPeakSteps,
          .group_steps = kPeakSteps,
          .x = reinterpret_cast<const std::byte*>(x),
          .x_stride = 0,
          .sums_of_x = &sum_of_x,
          .sums_of_x_stride = 0,
          .scales = nullptr,
          .scales_stride = 0,
          .rows = 1,
          .sums = sums,
          .columns = kColumns,
          .next = weights});
    asm volatile("" ::"r"(sums) : "memory");  // somebody may read them
  }
  return repetitions * kPeakSteps * 4 * kColumns * 2;
}

std::int64_t FloatPeak(std::int64_t repetitions) {
  const float weights[kPeakSteps * kColumns] = {1, 2, 3};
  const float x[kPeakSteps] = {3, 2, 1};
  float sums[kColumns] = {};
  for (std::int64_t i = 0; i < repetitions; ++i) {
    F32({.weights = reinterpret_cast<const std::uint8_t*>(weights),
         .k = kPeakSteps,
         .x = x,
         .x_stride = 0,
         .rows = 1,
         .sums = sums,
         .columns = kColumns,
         .next = nullptr});
    asm volatile("" ::"r"(sums) : "memory");
  }
  return repetitions * kPeakSteps * kColumns * 2;
}

}  // namespace

const MatmulTiles kPortableMatmulTiles = {.largest_magnitude = LargestMagnitude,
                                          .quantise = Quantise,
                                          .int8 = Int8,
                                          .int4 = Int4,
                                          .bf16 = Bf16,
                                          .f32 = F32,
                                          .add_scaled = AddScaledPass,
                                          .scale = ScalePass,
                                          .add = AddPass,
                                          .gelu_tanh = GeluTanhPass,
                                          .silu = SiluPass,
                                          .integer_peak = IntegerPeak,
                                          .float_peak = FloatPeak};

}  // namespace jubal

#ifndef JUBAL_KERNELS_FILL_RANDOM_H_
#define JUBAL_KERNELS_FILL_RANDOM_H_

#include <cstdint>

#include "kernels/counter_random.h"
#include "kernels/host_device.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

/// Fills a packed matrix, or a stack of experts' matrices, with random weights. Products with
/// inputs of variance 1 have variance 1. A weight depends on `key` and on its place in the whole
/// matrix alone, whatever part `layout` describes. Padding is random, too: no product takes it into
/// account. For measurements.
struct FillRandom {
  TensorView data;    // [layout.WeightBytes()] u8
  TensorView scales;  // [layout.ScaleBytes() / 4] f32; integers only
  MatrixLayout layout;
  std::int64_t key = 0;  // of the whole matrix
};

void Check(const FillRandom& op);
void RunOnCpu(const FillRandom& op);

/// Standard deviation of the matrix's elements.
float RandomDeviation(const MatrixLayout& layout);
/// The scale of every group of a matrix of integers.
float RandomScale(const MatrixLayout& layout);

/// 32 random bits as the bits of a weight of that deviation.
JUBAL_HOST_DEVICE inline std::uint32_t RandomWeight(float deviation, std::uint32_t random) {
  return __builtin_bit_cast(std::uint32_t, deviation * UnitVariance(random));
}

/// Word `index` of a 64-column block of one chunk of one expert, as it lies in memory: a block's
/// numbers are the stream {key, expert, chunk, block}. A step of 4 bytes of 64 columns is whole
/// words of 8 bytes.
JUBAL_HOST_DEVICE inline std::uint64_t RandomWeights(WeightType type, float deviation,
                                                     std::uint64_t stream, std::uint64_t index) {
  const std::uint64_t word = RandomWord(stream, index);
  const auto low = static_cast<std::uint32_t>(word);
  const auto high = static_cast<std::uint32_t>(word >> 32);
  switch (type) {
    case WeightType::kInt8:
    case WeightType::kInt4:
      break;
    case WeightType::kBf16: {
      // The upper half of a float is a bf16; four of them, of 16 random bits each.
      const auto bf16 = [deviation](std::uint32_t bits) {
        return std::uint64_t{RandomWeight(deviation, bits << 16) >> 16};
      };
      return bf16(low) | bf16(low >> 16) << 16 | bf16(high) << 32 | bf16(high >> 16) << 48;
    }
    case WeightType::kF32:
      return std::uint64_t{RandomWeight(deviation, high)} << 32 | RandomWeight(deviation, low);
  }
  return word;
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_FILL_RANDOM_H_

#ifndef JUBAL_KERNELS_SAMPLE_FORMS_H_
#define JUBAL_KERNELS_SAMPLE_FORMS_H_

#include <cmath>
#include <cstdint>
#include <span>

#include "kernels/float_math.h"
#include "kernels/host_device.h"
#include "kernels/sample.h"

namespace jubal {

// What the forms of Sample and LogProb have in common. A token's weight is its probability relative
// to the most probable token's. Weights are added up as integers: the sum is the same in any order.

/// The weight times 2³⁹, rounded: what is below 2⁻⁴⁰ counts nothing. Sums of 2²⁴ stay below 2⁶⁴.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline std::uint64_t FixedWeight(float weight) {
  // With 2¹³ added, the last bit of the double is 2⁻³⁹.
  constexpr double kRounder = 0x1p13;
  return __builtin_bit_cast(std::uint64_t, static_cast<double>(weight) + kRounder) -
         __builtin_bit_cast(std::uint64_t, kRounder);
}

inline constexpr std::int64_t kMaxVocabulary = 1 << 24;

/// What ln softmax takes from every logit of a row: max, then ln Σ e^(logit − max).
struct Normaliser {
  float max = 0.0f;
  double log_sum = 0.0;

  JUBAL_HOST_DEVICE float LogProbOf(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - max - log_sum);
  }
};

/// From the largest logit and the sum of all tokens' FixedWeight.
JUBAL_HOST_DEVICE inline Normaliser NormaliserFrom(float max, std::uint64_t sum) {
  return {max, FastLog(static_cast<double>(sum) * 0x1p-39)};
}

/// Whether the logit is infinite or not a number.
[[gnu::always_inline]] JUBAL_HOST_DEVICE inline bool IsBroken(float logit) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  return (__builtin_bit_cast(std::uint32_t, logit) & kExponent) == kExponent;
}

/// The logit as an integer: the largest logit is the least; −0 ties with 0.
JUBAL_HOST_DEVICE inline std::uint32_t LogitKey(float logit) {
  const auto bits = __builtin_bit_cast(std::uint32_t, logit + 0.0f);
  const std::uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}
JUBAL_HOST_DEVICE inline float LogitOf(std::uint32_t logit_key) {
  const std::uint32_t ascending = ~logit_key;
  return __builtin_bit_cast(float, ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

/// Keys ascend where candidates stand in their order: logit descending, id ascending.
JUBAL_HOST_DEVICE inline std::uint64_t KeyOf(float logit, std::int64_t id) {
  return (std::uint64_t{LogitKey(logit)} << 32) | static_cast<std::uint64_t>(id);
}
JUBAL_HOST_DEVICE inline std::int32_t IdOf(std::uint64_t key) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(key));
}

/// The upper half of the product.
JUBAL_HOST_DEVICE inline std::uint64_t MultiplyHigh(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t kLow = 0xffffffffu;
  const std::uint64_t low = (a & kLow) * (b & kLow);
  const std::uint64_t middle = (a >> 32) * (b & kLow) + (low >> 32);
  const std::uint64_t other_middle = (a & kLow) * (b >> 32) + (middle & kLow);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other_middle >> 32);
}

/// The least sum of weights that is top_p of `whole`, and of one token at least.
JUBAL_HOST_DEVICE inline std::uint64_t ShareOf(float top_p, std::uint64_t whole) {
  const double share = std::ceil(static_cast<double>(top_p) * static_cast<double>(whole));
  return share > 1.0 ? static_cast<std::uint64_t>(share) : 1;
}

/// What penalties leave of a logit. It stays finite, whatever they are.
JUBAL_HOST_DEVICE inline float Bounded(float logit) {
  constexpr float kMost = 0x1.fffffep127f;
  const float above = logit < -kMost ? -kMost : logit;
  return above > kMost ? kMost : above;
}
JUBAL_HOST_DEVICE inline float PenaliseSeen(float logit, float repetition_penalty) {
  return Bounded(logit > 0.0f ? logit / repetition_penalty : logit * repetition_penalty);
}
JUBAL_HOST_DEVICE inline float PenaliseProduced(float logit, float presence_penalty,
                                                float frequency_penalty, std::int32_t count) {
  return Bounded(logit - (presence_penalty + frequency_penalty * static_cast<float>(count)));
}

/// The row's random number, of 2⁶⁴.
std::uint64_t RandomBits(const SampleRow& row);

/// Whether the row's candidates are not all tokens.
bool HasFilter(const SampleRow& row);

/// Entries of the longest list of a row.
std::int64_t MaxListed(std::span<const SampleRow> rows);

/// A SampleRow as the GPU form copies it there, followed by all rows' lists of i32.
struct GpuSampleRow {
  float temperature;
  float top_p;
  float min_p;
  float presence_penalty;
  float frequency_penalty;
  float repetition_penalty;
  std::int32_t top_k;
  std::int32_t seen_size;
  std::int32_t produced_size;
  std::int32_t filtered;  // 1 when top_k, top_p or min_p is set
  std::int64_t lists;     // index of the first i32: seen, then produced, then its counts
  std::uint64_t random;
};

/// Where the penalised logits begin in the workspace on a GPU.
inline std::int64_t GpuSampleHeadBytes(std::int64_t rows, std::int64_t max_listed) {
  const std::int64_t bytes =
      rows * (static_cast<std::int64_t>(sizeof(GpuSampleRow)) + 3 * max_listed * 4);
  return (bytes + 63) / 64 * 64;
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_SAMPLE_FORMS_H_

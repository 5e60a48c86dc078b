#ifndef JUBAL_KERNELS_COUNTER_RANDOM_H_
#define JUBAL_KERNELS_COUNTER_RANDOM_H_

#include <cstdint>
#include <initializer_list>

#include "kernels/host_device.h"

namespace jubal {

// Random numbers without state: what belongs to a key is the same on every rank, thread and device,
// whoever asks for it and in whatever order. For measurements, not for sampling.
// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", SplitMix64.

/// Number `index` of a stream.
JUBAL_HOST_DEVICE inline std::uint64_t RandomWord(std::uint64_t stream, std::uint64_t index) {
  std::uint64_t word = stream + (index + 1) * 0x9e3779b97f4a7c15u;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

/// The stream that belongs to a key of several numbers, given that of all but the last.
JUBAL_HOST_DEVICE inline std::uint64_t RandomStream(std::uint64_t stream, std::int64_t part) {
  return RandomWord(stream, static_cast<std::uint64_t>(part));
}

/// The stream that belongs to a key of several numbers.
inline std::uint64_t RandomStream(std::initializer_list<std::int64_t> key) {
  std::uint64_t stream = 0;
  for (const std::int64_t part : key) stream = RandomStream(stream, part);
  return stream;
}

/// 32 random bits as a number of mean 0 and variance 1, uniform between ±√3.
JUBAL_HOST_DEVICE inline float UnitVariance(std::uint32_t bits) {
  constexpr float kSqrt3 = 1.7320508f;
  return static_cast<float>(static_cast<std::int32_t>(bits)) * (kSqrt3 * 0x1p-31f);
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_COUNTER_RANDOM_H_

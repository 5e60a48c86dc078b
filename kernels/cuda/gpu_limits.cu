#include "kernels/cuda/gpu_limits.h"

#include <algorithm>
#include <array>
#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ptx.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 8;  // of a multiprocessor: all its threads, where registers allow it

__device__ __forceinline__ std::int64_t ThisThread() {
  return std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

/// Reads all; what is left of it keeps the compiler from leaving it out.
__global__ void __launch_bounds__(kThreads)
    ReadAll(unsigned* rest, const uint4* from, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  unsigned all = 0;
  const auto read = [&](std::int64_t i) {
    const uint4 value = LoadStreaming(from + i);
    all ^= value.x ^ value.y ^ value.z ^ value.w;
  };
  std::int64_t i = ThisThread();
  for (; i + 3 * stride < count; i += 4 * stride) {
#pragma unroll
    for (int j = 0; j < 4; ++j) read(i + j * stride);
  }
  for (; i < count; i += stride) read(i);
  rest[ThisThread()] = all;
}

__device__ __forceinline__ void MultiplyOnce(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
  MmaInt8(d, a, b);
}
__device__ __forceinline__ void MultiplyOnce(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
  MmaBf16(d, a, b);
}

/// Bits that differ from thread to thread: products of zeros take less power, and run faster.
template <class Sum>
__device__ std::uint32_t Operand(std::uint32_t i) {
  const auto bits = static_cast<std::uint32_t>(ThisThread() * 41 + i) * 2654435761u;
  if constexpr (std::is_same_v<Sum, float>) return (bits & 0x807f807fu) | 0x3e803e80u;  // ±0.25 …
  return bits;
}

constexpr int kTiles = 4;  // of weights, each multiplied with both planes: 8 sums under way

template <class Sum>
__global__ void __launch_bounds__(kThreads) MultiplyTiles(Sum* rest, int rounds) {
  std::uint32_t a[kTiles][4];
  std::uint32_t b[2][2];
  Sum sums[kTiles][2][4] = {};
  for (int i = 0; i < kTiles * 4; ++i) a[i / 4][i % 4] = Operand<Sum>(i);
  for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = Operand<Sum>(kTiles * 4 + i);
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) MultiplyOnce(sums[tile][plane], a[tile], b[plane]);
    }
  }
  Sum all{};
  for (const auto& tile : sums) {
    for (const auto& plane : tile) {
      for (const Sum sum : plane) all += sum;
    }
  }
  rest[ThisThread()] = all;
}

constexpr int kChains = 16;

__global__ void __launch_bounds__(kThreads) MultiplyFloats(float* rest, int rounds) {
  const auto x = static_cast<float>(threadIdx.x) * 0x1p-8f;
  float sums[kChains] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) sums[i] = __fmaf_rn(sums[i], x, 1.0f);
  }
  float all = 0.0f;
  for (const float sum : sums) all += sum;
  rest[ThisThread()] = all;
}

/// The median of five runs.
template <class Enqueue>
double Seconds(Stream& stream, const Enqueue& enqueue) {
  std::array<double, 5> seconds{};
  for (double& run : seconds) {
    const auto from = stream.queue().NewMark();
    enqueue();
    const auto to = stream.queue().NewMark();
    stream.Synchronize();
    run = stream.queue().SecondsBetween(*from, *to);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[2];
}

/// How many operations per second enqueue(rounds) does, of `operations` a round.
template <class Enqueue>
double Rate(Stream& stream, double operations, const Enqueue& enqueue) {
  constexpr double kLongEnough = 10e-3;
  for (int rounds = 4;; rounds *= 4) {
    const double seconds = Seconds(stream, [&] { enqueue(rounds); });
    if (seconds >= kLongEnough) return operations * rounds / seconds;
  }
}

}  // namespace

double MeasureGpuReadBandwidth(ConstTensorView memory, Stream& stream) {
  CHECK(memory.dense() && memory.bytes() % 16 == 0);
  const unsigned blocks = Extent(stream.gpu().info().multiprocessors * kBlocks);
  const auto rest = stream.gpu().Allocate(std::int64_t{blocks} * kThreads * 4);
  const double seconds = Seconds(stream, [&] {
    Launch(stream, ReadAll, blocks, kThreads, 0, reinterpret_cast<unsigned*>(rest.get()),
           reinterpret_cast<const uint4*>(memory.raw()), memory.bytes() / 16);
  });
  return static_cast<double>(memory.bytes()) / seconds;
}

double MeasureGpuCopyBandwidth(TensorView memory, Stream& stream) {
  CHECK(memory.dense());
  const std::int64_t half = memory.bytes() / 2;
  const double seconds = Seconds(
      stream, [&] { stream.queue().Copy(memory.raw() + half, half, memory.raw(), half, half, 1); });
  return 2 * static_cast<double>(half) / seconds;
}

double MeasureGpuPeak(WeightType type, Stream& stream) {
  const unsigned blocks = Extent(stream.gpu().info().multiprocessors * kBlocks);
  const double threads = static_cast<double>(blocks) * kThreads;
  const auto rest = stream.gpu().Allocate(std::int64_t{blocks} * kThreads * 4);
  const auto rate = [&](double operations, auto* kernel, auto* to) {
    return Rate(stream, operations,
                [&](int rounds) { Launch(stream, kernel, blocks, kThreads, 0, to, rounds); });
  };
  const double tiles = threads / kWarp * kTiles * 16 * 8 * 2;  // × k: operations of a round
  switch (type) {
    case WeightType::kInt4:
    case WeightType::kInt8:
      return rate(tiles * 32, MultiplyTiles<std::int32_t>,
                  reinterpret_cast<std::int32_t*>(rest.get()));
    case WeightType::kBf16:
      return rate(tiles * 16, MultiplyTiles<float>, reinterpret_cast<float*>(rest.get()));
    case WeightType::kF32:
      break;
  }
  return rate(threads * kChains * 2, MultiplyFloats, reinterpret_cast<float*>(rest.get()));
}

}  // namespace jubal

#include "kernels/cpu_limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/check.h"
#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

double MeasureReadBandwidth(ConstTensorView memory) {
  constexpr std::int64_t kLine = 64;
  constexpr int kWords = kLine / 8;
  const std::int64_t lines = memory.bytes() / kLine;
  CHECK(lines > 0);
  std::uint64_t parity = 0;
  const auto begin = Clock::now();
#pragma omp parallel reduction(^ : parity)
  {
    std::uint64_t words[kWords] = {};
#pragma omp for
    for (std::int64_t i = 0; i < lines; ++i) {
      std::uint64_t line[kWords];
      std::memcpy(line, memory.raw() + i * kLine, kLine);
      for (int w = 0; w < kWords; ++w) words[w] ^= line[w];
    }
    for (const std::uint64_t word : words) parity ^= word;
  }
  const auto end = Clock::now();
  // Nobody needs the sum, but the compiler must not know.
  volatile std::uint64_t keep = parity;
  static_cast<void>(keep);
  return static_cast<double>(lines * kLine) / Seconds(begin, end);
}

double MeasurePeak(WeightType type) {
  constexpr double kLongEnough = 0.05;  // seconds
  const MatmulTiles& tiles = ActiveMatmulTiles();
  const auto run = HasScales(type) ? tiles.integer_peak : tiles.float_peak;
  for (std::int64_t repetitions = 1 << 14;; repetitions *= 4) {
    std::int64_t operations = 0;
    const auto begin = Clock::now();
#pragma omp parallel reduction(+ : operations)
    operations += run(repetitions);
    const double seconds = Seconds(begin, Clock::now());
    if (seconds >= kLongEnough) return static_cast<double>(operations) / seconds;
  }
}

}  // namespace jubal

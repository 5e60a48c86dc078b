// One expert matrix product after the other, over weights that lie in memory and not in a cache, as
// decoding and prefill meet them. Each line prints the weights' bytes per second and its ratio to
// the read bandwidth measured beside it, and the operations per second.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include <benchmark/benchmark.h>

#include "kernels/arena.h"
#include "kernels/matmul.h"
#include "kernels/run.h"

namespace jubal {
namespace {

constexpr std::int64_t kHidden = 6144;         // Grok-1
constexpr std::int64_t kExpertHidden = 32768;  // Grok-1
constexpr std::int64_t kMatrices = 4;          // 0.8 GB of int8: no cache holds it

/// Bytes per second of all threads reading `memory` from end to end, the best of five.
double ReadBandwidth(TensorView memory) {
  const std::int64_t words = memory.bytes() / 8;
  const auto* data = reinterpret_cast<const std::uint64_t*>(memory.raw());
  double best = 0;
  for (int repetition = 0; repetition < 5; ++repetition) {
    std::uint64_t sum = 0;
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for reduction(^ : sum)
    for (std::int64_t i = 0; i < words; ++i) sum ^= data[i];
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    benchmark::DoNotOptimize(sum);
    best = std::max(best, static_cast<double>(memory.bytes()) / seconds.count());
  }
  return best;
}

/// Random bytes: products of zeros would run faster than any model does.
void FillRandomly(TensorView bytes) {
  std::uint64_t state = 88172645463325252u;
  for (std::int64_t i = 0; i < bytes.bytes() / 8; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(bytes.raw() + i * 8, &state, 8);
  }
}

void BM_Int8Matmul(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  const MatrixLayout layout{.type = WeightType::kInt8,
                            .split = Split::kByOutput,
                            .k = kHidden,
                            .n = kExpertHidden,
                            .group_rows = kHidden,
                            .experts = {0, 1},
                            .chunks = {0, 1},
                            .columns = {0, kExpertHidden}};
  Arena arena(kMatrices * ArenaBytes(layout.WeightBytes()) + ArenaBytes(layout.ScaleBytes()) +
              ArenaBytes(tokens * kHidden * 4) + ArenaBytes(tokens * kExpertHidden * 4) +
              ArenaBytes(MatmulWorkspaceBytes(layout, tokens)));
  const TensorView weights = arena.Take(DType::kU8, {kMatrices * layout.WeightBytes()});
  const TensorView scales = arena.Take(DType::kF32, {layout.ScaleBytes() / 4});
  const TensorView x = arena.Take(DType::kF32, {tokens, kHidden});
  const TensorView out = arena.Take(DType::kF32, {tokens, kExpertHidden});
  const TensorView workspace = arena.Take(DType::kU8, {MatmulWorkspaceBytes(layout, tokens)});
  FillRandomly(weights);
  std::fill_n(scales.data<float>(), scales.size(0), 1e-3f);
  for (std::int64_t i = 0; i < tokens * kHidden; ++i) {
    x.data<float>()[i] = static_cast<float>(weights.data<std::uint8_t>()[i]) - 127.5f;
  }

  const double bandwidth = ReadBandwidth(weights);
  Stream stream(Device::kCpu);
  std::int64_t matrix = 0;
  for (auto _ : state) {
    Run(Matmul{.out = out,
               .x = x,
               .weight = {.layout = layout,
                          .data = weights.raw() + matrix * layout.WeightBytes(),
                          .scales = scales.data<float>()},
               .workspace = workspace},
        stream);
    matrix = (matrix + 1) % kMatrices;
  }
  const auto products = static_cast<double>(state.iterations());
  const double bytes = products * static_cast<double>(layout.WeightBytes());
  using benchmark::Counter;
  state.counters["bytes"] = Counter(bytes, Counter::kIsRate, Counter::kIs1000);
  state.counters["of_read"] = Counter(bytes / bandwidth, Counter::kIsRate);
  state.counters["ops"] =
      Counter(products * 2.0 * static_cast<double>(tokens) * kHidden * kExpertHidden,
              Counter::kIsRate, Counter::kIs1000);
}

BENCHMARK(BM_Int8Matmul)
    ->ArgName("tokens")
    ->Arg(1)
    ->Arg(2)
    ->Arg(4)
    ->Arg(8)
    ->Arg(64)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace jubal

BENCHMARK_MAIN();

// One product after the other over weights that lie in memory and not in a cache, as decoding and
// prefill meet them. Each line prints the weights' bytes per second and the operations per second,
// and their ratios to the read bandwidth and to the peak measured beside them.

#include <array>
#include <cstdint>

#include "benchmarks/kernels/operands.h"
#include "kernels/matmul.h"
#include "kernels/run.h"

namespace jubal {
namespace {

constexpr std::int64_t kHidden = 6144;         // Grok-1
constexpr std::int64_t kExpertHidden = 32768;  // Grok-1
constexpr std::int64_t kMatrices = 4;          // 0.8 GB of int8: no cache holds it

void BM_Matmul(benchmark::State& state, WeightType type) {
  const std::int64_t tokens = state.range(0);
  const MatrixLayout one{.type = type,
                         .split = Split::kByOutput,
                         .k = kHidden,
                         .n = kExpertHidden,
                         .group_rows = GroupRowsOf(type, kHidden),
                         .experts = {0, 1},
                         .chunks = {0, 1},
                         .columns = {0, kExpertHidden}};
  MatrixLayout stack = one;
  stack.experts = {0, kMatrices};
  const RandomWeights weights(stack);
  Arena arena(ArenaBytes(tokens * kHidden * 4) + ArenaBytes(tokens * kExpertHidden * 4) +
              ArenaBytes(MatmulWorkspaceBytes(one, tokens)));
  const TensorView x = arena.Take(DType::kF32, {tokens, kHidden});
  const TensorView out = arena.Take(DType::kF32, {tokens, kExpertHidden});
  const TensorView workspace = arena.Take(DType::kU8, {MatmulWorkspaceBytes(one, tokens)});
  FillWithFloats(x);

  const Limits limits(weights.data(), type);
  Stream stream;
  std::int64_t matrix = 0;
  for (auto _ : state) {
    MatrixLayout part = one;
    part.experts = {matrix, matrix + 1};
    Run(
        Matmul{
            .out = out, .x = x, .weight = PartOf(weights.matrix(), part), .workspace = workspace},
        stream);
    matrix = (matrix + 1) % kMatrices;
  }
  limits.Report(state, static_cast<double>(one.WeightBytes() + one.ScaleBytes()),
                2.0 * static_cast<double>(tokens) * kHidden * kExpertHidden);
}

#define JUBAL_TOKENS ArgName("tokens")->Arg(1)->Arg(2)->Arg(3)->Arg(4)->Arg(6)->Arg(8)->Arg(16)

BENCHMARK_CAPTURE(BM_Matmul, int8, WeightType::kInt8)
    ->JUBAL_TOKENS->Arg(128)
    ->Arg(512)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Matmul, int4, WeightType::kInt4)
    ->JUBAL_TOKENS->Arg(128)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Matmul, bf16, WeightType::kBf16)
    ->JUBAL_TOKENS->Arg(128)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace jubal

BENCHMARK_MAIN();

// The experts of one layer, 8 of which 2 take each token, after tokens were routed at random. Bytes
// count the experts that have tokens once.

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "benchmarks/kernels/operands.h"
#include "kernels/gated_experts.h"
#include "kernels/run.h"

namespace jubal {
namespace {

constexpr std::int64_t kHidden = 3072;
constexpr std::int64_t kExpertHidden = 8192;
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTopK = 2;

/// The offsets of a random routing: each token picks kTopK different experts.
std::vector<std::int32_t> RandomOffsets(std::int64_t tokens, std::mt19937& random) {
  std::vector<std::int32_t> offsets(kExperts + 1, 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<std::size_t>(random() % kExperts);
    const auto second = (first + 1 + random() % (kExperts - 1)) % kExperts;
    ++offsets[first + 1];
    ++offsets[second + 1];
  }
  for (std::size_t e = 1; e <= kExperts; ++e) offsets[e] += offsets[e - 1];
  return offsets;
}

void BM_GatedExperts(benchmark::State& state, WeightType type) {
  const std::int64_t tokens = state.range(0);
  const std::int64_t rows = tokens * kTopK;
  const MatrixLayout gate{.type = type,
                          .split = Split::kByOutput,
                          .k = kHidden,
                          .n = kExpertHidden,
                          .group_rows = GroupRowsOf(type, kHidden),
                          .experts = {0, kExperts},
                          .chunks = {0, 1},
                          .columns = {0, kExpertHidden}};
  const MatrixLayout down{.type = type,
                          .split = Split::kByInput,
                          .k = kExpertHidden,
                          .n = kHidden,
                          .group_rows = GroupRowsOf(type, kExpertHidden / kChunks),
                          .experts = {0, kExperts},
                          .chunks = {0, kChunks},
                          .columns = {0, kHidden}};
  const RandomWeights gates(gate);
  const RandomWeights ups(gate);
  const RandomWeights downs(down);
  const std::int64_t workspace_bytes = GatedExpertsWorkspaceBytes(gate, down, rows);
  Arena arena(2 * ArenaBytes(rows * kHidden * 4) + ArenaBytes(rows * kExpertHidden * 4) +
              ArenaBytes(workspace_bytes));
  const TensorView x = arena.Take(DType::kF32, {rows, kHidden});
  const TensorView out = arena.Take(DType::kF32, {1, rows, kHidden});
  const TensorView hidden = arena.Take(DType::kF32, {rows, kExpertHidden});
  const TensorView workspace = arena.Take(DType::kU8, {workspace_bytes});
  FillWithFloats(x);

  const Limits limits(gates.data(), type);
  std::mt19937 random(1);
  Stream stream;
  std::int64_t experts = 0;
  for (auto _ : state) {
    const std::vector<std::int32_t> offsets = RandomOffsets(tokens, random);
    for (std::size_t e = 0; e < kExperts; ++e) experts += offsets[e] < offsets[e + 1];
    Run(GatedExperts{.out = out,
                     .x = x,
                     .offsets = {reinterpret_cast<const std::byte*>(offsets.data()),
                                 DType::kI32,
                                 {kExperts + 1}},
                     .gate = gates.matrix(),
                     .up = ups.matrix(),
                     .down = downs.matrix(),
                     .hidden = hidden,
                     .workspace = workspace},
        stream);
  }
  const double expert_bytes =
      2 * static_cast<double>(gate.ExpertBytes() + gate.ExpertScales() * 4) +
      static_cast<double>(down.ExpertBytes() + down.ExpertScales() * 4);
  limits.Report(
      state, expert_bytes * static_cast<double>(experts) / static_cast<double>(state.iterations()),
      2.0 * 3 * static_cast<double>(rows) * kHidden * kExpertHidden);
}

#define JUBAL_BATCHES ArgName("tokens")->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(16)->Arg(32)->Arg(512)

BENCHMARK_CAPTURE(BM_GatedExperts, int8, WeightType::kInt8)
    ->JUBAL_BATCHES->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_GatedExperts, int4, WeightType::kInt4)
    ->JUBAL_BATCHES->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace jubal

BENCHMARK_MAIN();

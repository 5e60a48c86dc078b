// What a layer does between its products, for `tokens` rows of Grok-1's width, and the draw of a
// token from its vocabulary. All of it lies in caches, as it does in a step.

#include <cstdint>
#include <numeric>
#include <vector>

#include "benchmarks/kernels/operands.h"
#include "kernels/add.h"
#include "kernels/combine_experts.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/route_top_k.h"
#include "kernels/run.h"
#include "kernels/sample.h"
#include "kernels/sum_tree.h"

namespace jubal {
namespace {

constexpr std::int64_t kHidden = 6144;
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTopK = 2;
constexpr std::int64_t kVocabulary = 131072;

/// Room for the operands of one benchmark.
class Operands {
 public:
  explicit Operands(std::int64_t tokens) : arena_((tokens + 4) * kHidden * 4 * 8 + (8 << 20)) {}

  TensorView Floats(Shape shape) {
    const TensorView view = arena_.Take(DType::kF32, shape);
    FillWithFloats(view);
    return view;
  }
  TensorView Ints(Shape shape, std::int32_t below) {
    const TensorView view = arena_.Take(DType::kI32, shape);
    for (std::int64_t i = 0; i < shape.elements(); ++i) {
      view.data<std::int32_t>()[i] = static_cast<std::int32_t>(i % below);
    }
    return view;
  }
  TensorView Bytes(std::int64_t bytes) { return arena_.Take(DType::kU8, {bytes}); }

 private:
  Arena arena_;
};

template <class Op>
void Measure(benchmark::State& state, const Op& op, double bytes) {
  Stream stream;
  for (auto _ : state) Run(op, stream);
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * bytes,
                         benchmark::Counter::kIsRate, benchmark::Counter::kIs1000);
}

double RowBytes(std::int64_t rows) { return static_cast<double>(rows * kHidden * 4); }

void BM_RmsNorm(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const RmsNorm op{.out = operands.Floats({tokens, kHidden}),
                   .x = operands.Floats({tokens, kHidden}),
                   .scale = operands.Floats({kHidden})};
  Measure(state, op, 2 * RowBytes(tokens));
}

void BM_Add(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const TensorView into = operands.Floats({tokens, kHidden});
  const TensorView x = operands.Bytes(tokens * kHidden * 4);
  const ConstTensorView zeros(x.raw(), DType::kF32, {tokens, kHidden});  // `into` stays as it is
  Measure(state, Add{.into = into, .x = zeros}, 3 * RowBytes(tokens));
}

void BM_Rope(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const Rope op{.heads = operands.Floats({tokens, kHidden}),
                .positions = operands.Ints({tokens}, 8192),
                .frequencies = operands.Floats({kHeadDim / 2})};
  Measure(state, op, 2 * RowBytes(tokens));
}

void BM_RouteTopK(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const RouteTopK op{.topk_ids = operands.Ints({tokens, kTopK}, kExperts),
                     .topk_weights = operands.Floats({tokens, kTopK}),
                     .logits = operands.Floats({tokens, kExperts})};
  Measure(state, op, static_cast<double>(tokens * kExperts * 4));
}

void BM_GatherRows(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const TensorView count = operands.Ints({1}, 1);
  count.data<std::int32_t>()[0] = static_cast<std::int32_t>(tokens * kTopK);
  const GatherRows op{.out = operands.Floats({tokens * kTopK, kHidden}),
                      .x = operands.Floats({tokens, kHidden}),
                      .index = operands.Ints({tokens * kTopK}, static_cast<std::int32_t>(tokens)),
                      .count = count};
  Measure(state, op, 2 * RowBytes(tokens * kTopK));
}

void BM_CombineExperts(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  Operands operands(tokens);
  const CombineExperts op{
      .out = operands.Floats({tokens, kHidden}),
      .y = operands.Floats({tokens * kTopK, kHidden}),
      .row_of = operands.Ints({tokens, kTopK}, static_cast<std::int32_t>(tokens * kTopK)),
      .topk_ids = operands.Ints({tokens, kTopK}, kExperts),
      .topk_weights = operands.Floats({tokens, kTopK})};
  Measure(state, op, 3 * RowBytes(tokens));
}

void BM_GreedyDraw(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  Operands operands(rows * kVocabulary / kHidden);
  const std::vector<SampleRow> how(static_cast<std::size_t>(rows), SampleRow{.temperature = 0.0f});
  const Sample op{
      .ids = operands.Ints({rows}, 1),
      .logprobs = operands.Floats({rows}),
      .logits = operands.Floats({rows, kVocabulary}),
      .rows = how,
      .workspace = operands.Bytes(SampleWorkspaceBytes(kVocabulary, rows, 0, Device::kCpu))};
  Measure(state, op, static_cast<double>(rows * kVocabulary * 4));
}

#define JUBAL_LIGHT ArgName("tokens")->Arg(1)->Arg(16)->Arg(256)->Unit(benchmark::kMicrosecond)

BENCHMARK(BM_RmsNorm)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_Add)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_Rope)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_RouteTopK)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_GatherRows)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_CombineExperts)->JUBAL_LIGHT->UseRealTime();
BENCHMARK(BM_GreedyDraw)
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(16)
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace jubal

BENCHMARK_MAIN();

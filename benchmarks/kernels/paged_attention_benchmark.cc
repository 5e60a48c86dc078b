// Attention of one layer over pages of random keys and values in memory, 24 query and 8 KV heads of
// 128: one new token for each of `batch` sequences of `depth` tokens (decode), or a prompt of so
// many tokens (prefill). Bytes count each key and value that is read from memory once.

#include <cstdint>
#include <numeric>
#include <vector>

#include "benchmarks/kernels/operands.h"
#include "kernels/paged_attention.h"
#include "kernels/run.h"

namespace jubal {
namespace {

constexpr std::int64_t kHeads = 24;
constexpr std::int64_t kKvHeads = 8;
constexpr std::int64_t kHeadDim = 128;

TensorView IntsOf(std::vector<std::int32_t>& values, Shape shape) {
  return {reinterpret_cast<std::byte*>(values.data()), DType::kI32, shape};
}

/// Queries at `positions` of `sequences`, all of which have pages for `depth` tokens.
void Attend(benchmark::State& state, KvType type, std::vector<std::int32_t> positions,
            std::vector<std::int32_t> sequences, std::int64_t batch, std::int64_t depth) {
  const auto tokens = static_cast<std::int64_t>(positions.size());
  const std::int64_t pages = (depth + kPageTokens - 1) / kPageTokens;
  KvLayer layer{.num_pages = batch * pages, .heads = kKvHeads, .head_dim = kHeadDim, .type = type};
  const std::int64_t kv_width = kKvHeads * kHeadDim;
  Arena arena(ArenaBytes(layer.num_pages * layer.PageBytes()) + 2 * ArenaBytes(kv_width * 4) +
              2 * ArenaBytes(tokens * kHeads * kHeadDim * 4));
  const TensorView pool = arena.Take(DType::kU8, {layer.num_pages * layer.PageBytes()});
  layer.data = pool.raw();
  const TensorView k = arena.Take(DType::kF32, {1, kv_width});
  const TensorView v = arena.Take(DType::kF32, {1, kv_width});
  const TensorView q = arena.Take(DType::kF32, {tokens, kHeads * kHeadDim});
  const TensorView out = arena.Take(DType::kF32, {tokens, kHeads * kHeadDim});
  FillWithFloats(k);
  FillWithFloats(v);
  FillWithFloats(q);

  std::vector<std::int32_t> page_table(static_cast<std::size_t>(batch * pages));
  std::iota(page_table.begin(), page_table.end(), 0);
  const TensorView table = IntsOf(page_table, {batch, pages});
  Stream stream;
  std::vector<std::int32_t> position = {0};
  std::vector<std::int32_t> sequence = {0};
  for (std::int64_t s = 0; s < batch; ++s) {
    for (std::int64_t t = 0; t < depth; ++t) {
      position[0] = static_cast<std::int32_t>(t);
      sequence[0] = static_cast<std::int32_t>(s);
      Run(StoreKv{.pages = layer,
                  .k = k,
                  .v = v,
                  .places = {IntsOf(position, {1}), IntsOf(sequence, {1}), table}},
          stream);
    }
  }
  std::vector<std::int32_t> kv_heads;
  for (std::int64_t h = 0; h < kHeads; ++h) {
    kv_heads.push_back(static_cast<std::int32_t>(h / (kHeads / kKvHeads)));
  }

  const RandomWeights memory({.type = WeightType::kF32,
                              .k = 16384,
                              .n = 8192,
                              .columns = {0, 8192}});  // 0.5 GB to measure bandwidth on
  const Limits limits(memory.data(), WeightType::kF32);
  const PagedAttention op{
      .out = out,
      .q = q,
      .pages = layer,
      .places = {IntsOf(positions, {tokens}), IntsOf(sequences, {tokens}), table},
      .kv_heads = IntsOf(kv_heads, {kHeads}),
      .scale = 0.0884f,
      .soft_cap = 30.0f};
  for (auto _ : state) Run(op, stream);
  double keys = 0;
  for (const std::int32_t p : positions) keys += p + 1;
  limits.Report(state, static_cast<double>(pool.bytes()),
                keys * kHeads * kHeadDim * 4);  // q · k and the weighted sum of v
}

void BM_DecodeAttention(benchmark::State& state, KvType type) {
  const std::int64_t batch = state.range(0);
  const std::int64_t depth = state.range(1);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(batch),
                                      static_cast<std::int32_t>(depth - 1));
  std::vector<std::int32_t> sequences(static_cast<std::size_t>(batch));
  std::iota(sequences.begin(), sequences.end(), 0);
  Attend(state, type, std::move(positions), std::move(sequences), batch, depth);
}

void BM_PrefillAttention(benchmark::State& state, KvType type) {
  const std::int64_t tokens = state.range(0);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
  std::iota(positions.begin(), positions.end(), 0);
  Attend(state, type, std::move(positions),
         std::vector<std::int32_t>(static_cast<std::size_t>(tokens), 0), 1, tokens);
}

#define JUBAL_DEPTHS                  \
  ArgNames({"batch", "depth"})        \
      ->Args({1, 4096})               \
      ->Args({16, 4096})              \
      ->Unit(benchmark::kMillisecond) \
      ->UseRealTime()

BENCHMARK_CAPTURE(BM_DecodeAttention, f32, KvType::kF32)->JUBAL_DEPTHS;
BENCHMARK_CAPTURE(BM_DecodeAttention, f16, KvType::kInt16)->JUBAL_DEPTHS;
BENCHMARK_CAPTURE(BM_DecodeAttention, int8, KvType::kInt8)->JUBAL_DEPTHS;
BENCHMARK_CAPTURE(BM_PrefillAttention, f16, KvType::kInt16)
    ->ArgName("tokens")
    ->Arg(512)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace jubal

BENCHMARK_MAIN();

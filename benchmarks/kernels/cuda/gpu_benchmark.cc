// Times the operations on a GPU at Grok-1's sizes, and holds each against what the GPU can do,
// measured beside it: the bandwidth at which it reads, and the rate at which it multiplies. Writes
// a table in Markdown.
//
//   kernels_cuda_gpu_benchmark [--small] [--json FILE] [WORD]    only operations with WORD in their
//                                                               name; --small: tiny operands, to
//                                                               try the program itself
//
// Every case is recorded in a graph, so that the host's launches do not count. Cold: the graph runs
// the operation over weights, or keys and values, that the cache has not seen for four times its
// size. Hot: over the same ones again and again.

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "benchmarks/kernels/cuda/gpu_operands.h"
#include "kernels/add.h"
#include "kernels/combine_experts.h"
#include "kernels/cuda/cuda_gpu.h"
#include "kernels/cuda/gpu_limits.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/route_top_k.h"
#include "kernels/run.h"

namespace jubal {
namespace {

struct Sizes {
  std::int64_t hidden = 6144;
  std::int64_t expert_hidden = 32768;
  std::int64_t heads = 48;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 128;
  std::int64_t vocabulary = 131072;
  std::int64_t most_tokens = 8192;
  std::int64_t most_keys = 8192;
};
constexpr Sizes kGrok1;
constexpr Sizes kSmall{.hidden = 128,
                       .expert_hidden = 256,
                       .heads = 6,
                       .kv_heads = 2,
                       .head_dim = 16,
                       .vocabulary = 256,
                       .most_tokens = 4,
                       .most_keys = 544};
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTopK = 2;
constexpr std::int64_t kMostSets = 64;

struct Case {
  std::string operation;  // "Matmul 6144 × 32768"
  std::string type;       // of weights, or of keys and values
  std::int64_t tokens = 0;
  double bytes = 0;       // that must be moved
  double operations = 0;  // 0: not what bounds it
  double peak = 0;        // operations per second
  std::int64_t sets = 1;  // of operands to go round
};

struct Timing {
  Case what;
  double cold = 0;  // seconds; 0: not measured
  double hot = 0;
};

class GpuBenchmark {
 public:
  GpuBenchmark(Gpu& gpu, const Sizes& sizes, std::string word)
      : gpu_(gpu), info_(gpu.info()), sizes_(sizes), word_(std::move(word)) {
    GpuOperands operands(stream_);
    const TensorView memory = operands.Bytes(std::max<std::int64_t>(16 * info_.cache_bytes, 64));
    FillRandomly(memory, stream_);
    for (const WeightType type : kTypes) PeakOf(type) = MeasureGpuPeak(type, stream_);
    read_ = MeasureGpuReadBandwidth(memory, stream_);
    copy_ = MeasureGpuCopyBandwidth(memory, stream_);
  }

  void RunAll() {
    const Sizes& s = sizes_;
    for (const WeightType type : {WeightType::kInt8, WeightType::kInt4, WeightType::kBf16}) {
      TimeMatmul(type, s.hidden, s.expert_hidden);
      TimeMatmul(type, s.hidden, s.heads * s.head_dim);
      TimeMatmulPartials(type, s.heads * s.head_dim, s.hidden);
      TimeGatedExperts(type);
    }
    TimeMatmul(WeightType::kBf16, s.hidden, s.vocabulary);
    TimeMatmul(WeightType::kF32, s.hidden, kExperts);
    for (const KvType type : {KvType::kInt16, KvType::kInt8}) {
      for (const std::int64_t keys : {1024, 8192}) {
        for (const std::int64_t batch : {1, 16, 64}) TimeDecodeAttention(type, batch, keys);
      }
    }
    TimePrefillAttention(KvType::kInt16, 512);
    TimePrefillAttention(KvType::kInt16, 8192);
    for (const std::int64_t tokens : {1, 64, 8192}) TimeLightOperations(tokens);
  }

  void PrintTable() const {
    fmt::print(
        "{}: compute capability {}.{}, {} multiprocessors, {:.1f} GB, L2 {:.0f} MB\n\n"
        "| Measured | |\n|---|---:|\n"
        "| read bandwidth | {:.0f} GB/s |\n| copy bandwidth, read and written | {:.0f} GB/s |\n",
        info_.name, info_.compute_capability / 10, info_.compute_capability % 10,
        info_.multiprocessors, static_cast<double>(info_.memory_bytes) * 1e-9,
        static_cast<double>(info_.cache_bytes) * 1e-6, read_ * 1e-9, copy_ * 1e-9);
    for (const WeightType type : kTypes) {
      fmt::print("| products with {} weights | {:.1f} TOP/s |\n", NameOf(type),
                 peaks_[static_cast<std::size_t>(type)] * 1e-12);
    }
    fmt::print(
        "\n| Operation | type | tokens | µs cold | µs hot | GB/s | of read | TOP/s | of peak |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|\n");
    for (const Timing& timing : timings_) {
      const Case& what = timing.what;
      const double seconds = timing.cold > 0 ? timing.cold : timing.hot;
      const auto time = [](double s) { return s > 0 ? fmt::format("{:.1f}", s * 1e6) : "–"; };
      fmt::print("| {} | {} | {} | {} | {} | {:.0f} | {:.2f} |", what.operation, what.type,
                 what.tokens, time(timing.cold), time(timing.hot), what.bytes / seconds * 1e-9,
                 what.bytes / seconds / read_);
      if (what.operations > 0) {
        fmt::print(" {:.1f} | {:.2f} |\n", what.operations / seconds * 1e-12,
                   what.operations / seconds / what.peak);
      } else {
        fmt::print(" – | – |\n");
      }
    }
  }

  void WriteJson(std::FILE* file) const {
    fmt::print(file,
               R"({{"gpu": "{}", "compute_capability": {}, "read_bandwidth": {:.4g}, )"
               R"("copy_bandwidth": {:.4g}, "cases": [)",
               info_.name, info_.compute_capability, read_, copy_);
    const char* before = "\n";
    for (const Timing& timing : timings_) {
      const Case& what = timing.what;
      fmt::print(file,
                 R"({}{{"operation": "{}", "type": "{}", "tokens": {}, "bytes": {:.6g}, )"
                 R"("operations": {:.6g}, "peak": {:.4g}, "seconds_cold": {:.4g}, )"
                 R"("seconds_hot": {:.4g}}})",
                 before, what.operation, what.type, what.tokens, what.bytes, what.operations,
                 what.peak, timing.cold, timing.hot);
      before = ",\n";
    }
    fmt::print(file, "\n]}}\n");
  }

 private:
  static constexpr std::array kTypes{WeightType::kInt8, WeightType::kInt4, WeightType::kBf16,
                                     WeightType::kF32};

  double& PeakOf(WeightType type) { return peaks_[static_cast<std::size_t>(type)]; }
  bool Wanted(std::string_view operation) const {
    return operation.find(word_) != std::string_view::npos;
  }
  /// Token counts of that list which these sizes allow.
  std::vector<std::int64_t> Tokens(std::vector<std::int64_t> all) const {
    std::erase_if(all, [&](std::int64_t tokens) { return tokens > sizes_.most_tokens; });
    return all;
  }
  /// How many operands of so many bytes the cache cannot hold by far.
  std::int64_t SetsOf(std::int64_t bytes) const {
    return std::clamp<std::int64_t>(4 * info_.cache_bytes / bytes + 1, 1, kMostSets);
  }

  /// Seconds of run(0), run(1) … run(runs − 1), all as one graph.
  template <class Run>
  double SecondsOf(std::int64_t runs, const Run& run) {
    GpuQueue& queue = stream_.queue();
    queue.BeginCapture();
    for (std::int64_t i = 0; i < runs; ++i) run(i);
    const std::unique_ptr<GpuGraph> graph = queue.EndCapture();
    const auto seconds = [&](int launches) {
      const auto from = queue.NewMark();
      for (int i = 0; i < launches; ++i) queue.Launch(*graph);
      const auto to = queue.NewMark();
      queue.Synchronize();
      return queue.SecondsBetween(*from, *to) / launches;
    };
    constexpr double kLongEnough = 20e-3;
    const double first = seconds(1);
    const int launches = static_cast<int>(std::clamp(kLongEnough / first, 1.0, 200.0));
    std::array<double, 3> all{seconds(launches), seconds(launches), seconds(launches)};
    std::sort(all.begin(), all.end());
    return all[1];
  }

  /// run(i) enqueues the operation with set i of the operands.
  template <class Run>
  void Time(const Case& what, const Run& run) {
    constexpr std::int64_t kHotRuns = 10;
    run(0);  // what only a first launch does cannot be recorded
    Timing timing{.what = what};
    if (what.sets < kMostSets)
      timing.cold = SecondsOf(what.sets, run) / static_cast<double>(what.sets);
    if (what.sets > 1) {
      timing.hot = SecondsOf(kHotRuns, [&](std::int64_t) { run(0); }) / kHotRuns;
    }
    timings_.push_back(timing);
    fmt::print(stderr, "{} {} {}\n", what.operation, what.type, what.tokens);
  }

  MatrixLayout Layout(WeightType type, Split split, std::int64_t k, std::int64_t n,
                      std::int64_t stack) const {
    const bool whole = split == Split::kByOutput;
    return {.type = type,
            .split = split,
            .k = k,
            .n = n,
            .group_rows = type == WeightType::kInt4   ? kInt4GroupRows
                          : type == WeightType::kInt8 ? (whole ? k : k / kChunks)
                                                      : 0,
            .experts = {0, stack},
            .chunks = {0, whole ? 1 : kChunks},
            .columns = {0, n}};
  }

  template <class TimeOne>
  void TimeProduct(const char* name, WeightType type, Split split, std::int64_t k, std::int64_t n,
                   const TimeOne& time_one) {
    const std::string operation = fmt::format("{} {} × {}", name, k, n);
    if (!Wanted(operation)) return;
    MatrixLayout one = Layout(type, split, k, n, 1);
    const std::int64_t bytes = one.WeightBytes() + one.ScaleBytes();
    const std::int64_t sets = SetsOf(bytes);
    GpuOperands operands(stream_);
    const PackedMatrix stack = operands.Weights(Layout(type, split, k, n, sets));
    for (const std::int64_t tokens : Tokens({1, 4, 8, 16, 64, 512})) {
      GpuOperands rows(stream_);
      const TensorView x = rows.Floats({tokens, k});
      const TensorView out = rows.Take(DType::kF32, {1, tokens, n});
      const TensorView workspace = rows.Bytes(MatmulWorkspaceBytes(one, tokens, Device::kCuda));
      const Case what{.operation = operation,
                      .type = std::string(NameOf(type)),
                      .tokens = tokens,
                      .bytes = static_cast<double>(bytes + x.bytes() + out.bytes()),
                      .operations = 2.0 * static_cast<double>(tokens * k * n),
                      .peak = PeakOf(type),
                      .sets = sets};
      Time(what, [&](std::int64_t set) {
        one.experts = {set, set + 1};
        time_one(out, x, PartOf(stack, one), workspace);
      });
    }
  }

  void TimeMatmul(WeightType type, std::int64_t k, std::int64_t n) {
    TimeProduct(
        "Matmul", type, Split::kByOutput, k, n,
        [&](TensorView out, TensorView x, const PackedMatrix& weight, TensorView workspace) {
          Run(Matmul{.out = out.Reshaped({out.size(1), out.size(2)}),
                     .x = x,
                     .weight = weight,
                     .workspace = workspace},
              stream_);
        });
  }

  void TimeMatmulPartials(WeightType type, std::int64_t k, std::int64_t n) {
    TimeProduct(
        "MatmulPartials", type, Split::kByInput, k, n,
        [&](TensorView out, TensorView x, const PackedMatrix& weight, TensorView workspace) {
          Run(MatmulPartials{.out = out, .x = x, .weight = weight, .workspace = workspace},
              stream_);
        });
  }

  /// The offsets of a random routing: each token picks kTopK different experts.
  static std::vector<std::int32_t> RandomOffsets(std::int64_t tokens) {
    std::mt19937 random(1);
    std::vector<std::int32_t> offsets(kExperts + 1, 0);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto first = static_cast<std::size_t>(random() % kExperts);
      const auto second = (first + 1 + random() % (kExperts - 1)) % kExperts;
      ++offsets[first + 1];
      ++offsets[second + 1];
    }
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    return offsets;
  }

  void TimeGatedExperts(WeightType type) {
    const std::int64_t k = sizes_.hidden;
    const std::int64_t n = sizes_.expert_hidden;
    const std::string operation = fmt::format("GatedExperts {} × {}", k, n);
    if (!Wanted(operation)) return;
    GpuOperands operands(stream_);
    const PackedMatrix gate = operands.Weights(Layout(type, Split::kByOutput, k, n, kExperts));
    const PackedMatrix up = operands.Weights(gate.layout);
    const PackedMatrix down = operands.Weights(Layout(type, Split::kByInput, n, k, kExperts));
    const std::int64_t expert_bytes =
        2 * gate.layout.ExpertBytes() + down.layout.ExpertBytes() +
        (2 * gate.layout.ExpertScales() + down.layout.ExpertScales()) * 4;
    for (const std::int64_t tokens : Tokens({1, 4, 16, 64, 512, 8192})) {
      const std::int64_t rows = tokens * kTopK;
      const std::vector<std::int32_t> offsets = RandomOffsets(tokens);
      std::int64_t touched = 0;
      for (std::size_t e = 0; e < kExperts; ++e) touched += offsets[e] < offsets[e + 1] ? 1 : 0;
      GpuOperands of_rows(stream_);
      const GatedExperts op{.out = of_rows.Take(DType::kF32, {1, rows, k}),
                            .x = of_rows.Floats({rows, k}),
                            .offsets = of_rows.Ints(offsets, {kExperts + 1}),
                            .gate = gate,
                            .up = up,
                            .down = down,
                            .hidden = of_rows.Take(DType::kF32, {rows, n}),
                            .workspace = of_rows.Bytes(GatedExpertsWorkspaceBytes(
                                gate.layout, down.layout, rows, Device::kCuda))};
      const Case what{
          .operation = operation,
          .type = std::string(NameOf(type)),
          .tokens = tokens,
          .bytes = static_cast<double>(touched * expert_bytes + op.x.bytes() + op.out.bytes()),
          .operations = 2.0 * 3 * static_cast<double>(rows * k * n),
          .peak = PeakOf(type)};
      Time(what, [&](std::int64_t) { Run(op, stream_); });
    }
  }

  void TimeDecodeAttention(KvType type, std::int64_t batch, std::int64_t keys) {
    if (batch > sizes_.most_tokens) return;
    std::vector<std::int32_t> sequences(static_cast<std::size_t>(batch));
    std::iota(sequences.begin(), sequences.end(), 0);
    const std::int64_t last = std::min(keys, sizes_.most_keys) - 1;
    TimeAttention(
        fmt::format("PagedAttention, {} keys", last + 1), type,
        std::vector<std::int32_t>(static_cast<std::size_t>(batch), static_cast<std::int32_t>(last)),
        sequences, batch);
  }

  void TimePrefillAttention(KvType type, std::int64_t tokens) {
    std::vector<std::int32_t> positions(
        static_cast<std::size_t>(std::min(tokens, sizes_.most_tokens)));
    std::iota(positions.begin(), positions.end(), 0);
    TimeAttention("PagedAttention, a prompt", type, positions,
                  std::vector<std::int32_t>(positions.size(), 0), 1);
  }

  /// Queries at those positions of those sequences, all of them as long as the last position.
  void TimeAttention(const std::string& operation, KvType type,
                     const std::vector<std::int32_t>& positions,
                     const std::vector<std::int32_t>& sequences, std::int64_t batch) {
    if (!Wanted(operation)) return;
    const auto tokens = static_cast<std::int64_t>(positions.size());
    const std::int64_t pages = positions.back() / kPageTokens + 1;
    KvLayer layer{.num_pages = batch * pages,
                  .heads = sizes_.kv_heads,
                  .head_dim = sizes_.head_dim,
                  .type = type,
                  .device = Device::kCuda};
    const std::int64_t pool_bytes = layer.num_pages * layer.PageBytes();
    const std::int64_t sets = SetsOf(pool_bytes);
    GpuOperands operands(stream_);
    // Random integers; scales that are floats of some size.
    const TensorView pools = operands.Floats({sets * pool_bytes / 4});
    std::vector<std::int32_t> table(static_cast<std::size_t>(batch * pages));
    std::iota(table.begin(), table.end(), 0);
    std::vector<std::int32_t> kv_heads;
    for (std::int64_t h = 0; h < sizes_.heads; ++h) {
      kv_heads.push_back(static_cast<std::int32_t>(h * sizes_.kv_heads / sizes_.heads));
    }
    const std::int64_t width = sizes_.heads * sizes_.head_dim;
    PagedAttention op{
        .out = operands.Take(DType::kF32, {tokens, width}),
        .q = operands.Floats({tokens, width}),
        .pages = layer,
        .places = {operands.Ints(positions, {tokens}), operands.Ints(sequences, {tokens}),
                   operands.Ints(table, {batch, pages})},
        .kv_heads = operands.Ints(kv_heads, {sizes_.heads}),
        .scale = 0.0884f,
        .soft_cap = 30.0f,
        .workspace = operands.Bytes(PagedAttentionWorkspaceBytes(
            tokens, sizes_.heads, sizes_.head_dim, pages * kPageTokens, Device::kCuda))};
    double keys = 0;
    for (const std::int32_t p : positions) keys += p + 1;
    const Case what{.operation = operation,
                    .type = type == KvType::kInt16 ? "int16" : "int8",
                    .tokens = tokens,
                    .bytes = static_cast<double>(pool_bytes + op.q.bytes() + op.out.bytes()),
                    .operations = keys * static_cast<double>(width) * 4,
                    .peak = PeakOf(WeightType::kF32),
                    .sets = sets};
    Time(what, [&](std::int64_t set) {
      op.pages.data = pools.raw() + set * pool_bytes;
      Run(op, stream_);
    });
  }

  template <class Op>
  void TimeLight(const char* operation, std::int64_t tokens, double bytes, const Op& op) {
    if (!Wanted(operation)) return;
    // All of it lies in the cache, as it does in a step.
    Time({.operation = operation,
          .type = "f32",
          .tokens = tokens,
          .bytes = bytes,
          .sets = kMostSets},
         [&](std::int64_t) { Run(op, stream_); });
  }

  void TimeLightOperations(std::int64_t tokens) {
    if (tokens > sizes_.most_tokens) return;
    const std::int64_t hidden = sizes_.hidden;
    const std::int64_t rows = tokens * kTopK;
    GpuOperands operands(stream_);
    const TensorView x = operands.Floats({tokens, hidden});
    const TensorView out = operands.Take(DType::kF32, {tokens, hidden});
    const TensorView of_rows = operands.Floats({rows, hidden});
    const double row_bytes = static_cast<double>(tokens * hidden * 4);
    std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
    std::iota(positions.begin(), positions.end(), 0);
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows));
    std::iota(numbers.begin(), numbers.end(), 0);
    std::vector<std::int32_t> token_of = numbers;
    std::vector<std::int32_t> ids = numbers;
    for (std::int32_t& token : token_of) token /= kTopK;
    for (std::int32_t& id : ids) id %= kExperts;
    const TensorView expert_ids = operands.Ints(ids, {tokens, kTopK});
    const TensorView weights = operands.Floats({tokens, kTopK});

    TimeLight("RmsNorm", tokens, 2 * row_bytes,
              RmsNorm{.out = out, .x = x, .scale = operands.Floats({hidden})});
    TimeLight("Add", tokens, 3 * row_bytes, Add{.into = out, .x = x});
    TimeLight("Rope", tokens, 2 * row_bytes,
              Rope{.heads = out.Reshaped({tokens, hidden}),
                   .positions = operands.Ints(positions, {tokens}),
                   .frequencies = operands.Floats({sizes_.head_dim / 2})});
    TimeLight("RouteTopK", tokens, static_cast<double>(tokens * kExperts * 4),
              RouteTopK{.topk_ids = operands.Take(DType::kI32, {tokens, kTopK}),
                        .topk_weights = operands.Take(DType::kF32, {tokens, kTopK}),
                        .logits = operands.Floats({tokens, kExperts})});
    TimeLight("GroupByExpert", tokens, static_cast<double>(3 * rows * 4),
              GroupByExpert{.offsets = operands.Take(DType::kI32, {kExperts + 1}),
                            .row_of = operands.Take(DType::kI32, {tokens, kTopK}),
                            .token_of = operands.Take(DType::kI32, {rows}),
                            .topk_ids = expert_ids,
                            .experts = {0, kExperts}});
    TimeLight("GatherRows", tokens, 2 * kTopK * row_bytes,
              GatherRows{.out = of_rows,
                         .x = x,
                         .index = operands.Ints(token_of, {rows}),
                         .count = operands.Ints({static_cast<std::int32_t>(rows)}, {1})});
    TimeLight("CombineExperts", tokens, (1 + kTopK) * row_bytes,
              CombineExperts{.out = out,
                             .y = of_rows,
                             .row_of = operands.Ints(numbers, {tokens, kTopK}),
                             .topk_ids = expert_ids,
                             .topk_weights = weights});
  }

  Gpu& gpu_;
  const GpuInfo info_;
  const Sizes sizes_;
  const std::string word_;
  Stream stream_{gpu_};
  double read_ = 0;
  double copy_ = 0;
  std::array<double, 4> peaks_{};
  std::vector<Timing> timings_;
};

int Main(int argc, char** argv) {
  Sizes sizes = kGrok1;
  const char* json = nullptr;
  std::string word;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--small") {
      sizes = kSmall;
    } else if (flag == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else if (!flag.starts_with('-') && word.empty()) {
      word = flag;
    } else {
      fmt::print(stderr, "usage: {} [--small] [--json FILE] [WORD]\n", argv[0]);
      return 64;
    }
  }
  if (CudaGpuUuids().empty()) {
    fmt::print(stderr, "no GPU here\n");
    return 77;
  }
  const std::unique_ptr<Gpu> gpu = OpenCudaGpu(0);
  GpuBenchmark benchmark(*gpu, sizes, word);
  benchmark.RunAll();
  benchmark.PrintTable();
  if (json == nullptr) return 0;
  std::FILE* const file = std::fopen(json, "w");
  if (file == nullptr) {
    fmt::print(stderr, "{} cannot be written\n", json);
    return 74;
  }
  benchmark.WriteJson(file);
  return std::fclose(file) == 0 ? 0 : 74;
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) {
  try {
    return jubal::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fputs(error.what(), stderr);
    return 1;
  }
}

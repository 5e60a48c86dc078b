#include "runtime/memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"
#include "kernels/sample.h"
#include "parallel/all_reduce.h"
#include "parallel/mesh.h"
#include "runtime/weight_loader.h"
#include "runtime/weight_upload.h"

namespace jubal {
namespace {

/// Rows of logits in one pass over the output matrix, at most; on GPUs at least. More save passes,
/// at 2 · vocabulary · 4 bytes a row on the leader.
constexpr std::int64_t kLogitRows = 32;

KvLayer KvLayerShape(const ModelDescription& model, const ParallelPlan& plan, int tensor_index,
                     KvType type) {
  return {.heads = OwnedKvHeads(model, tensor_index, plan.tensor).size(),
          .head_dim = model.head_dim,
          .type = type};
}

constexpr std::int64_t kAligned = kAlignment / 4;  // in i32

/// The places of StepInputs' tensors in `all`, and its size.
struct InputPlaces {
  explicit InputPlaces(const StepLimits& limits)
      : tokens(DivideUp(limits.max_tokens, kAligned) * kAligned),
        counts(DivideUp(limits.max_tokens, limits.logit_rows)),
        page_table(4 * tokens + DivideUp(counts, kAligned) * kAligned),
        end(page_table + limits.max_sequences * limits.max_pages) {}

  std::int64_t tokens;      // from one [max_tokens] to the next
  std::int64_t counts;      // how many
  std::int64_t page_table;  // where it begins
  std::int64_t end;
};

/// Fills in the views of `all`.
void DivideInputs(const StepLimits& limits, StepInputs& inputs) {
  const InputPlaces places(limits);
  TensorView* const of_tokens[] = {&inputs.token_ids, &inputs.positions, &inputs.sequences,
                                   &inputs.logit_index};
  std::int64_t begin = 0;
  for (TensorView* view : of_tokens) {
    *view = inputs.all.Rows(begin, limits.max_tokens);
    begin += places.tokens;
  }
  inputs.logit_counts = inputs.all.Rows(begin, places.counts);
  inputs.page_table = inputs.all.Rows(places.page_table, places.end - places.page_table);
}

/// Names each buffer of pinned memory, its dtype and its shape.
template <class Visit>
void ForEachPinned(const ParallelPlan& plan, const Seat& seat, const StepLimits& limits,
                   PinnedRing& ring, Visit visit) {
  for (PinnedBuffers& pinned : ring) {
    visit(pinned.inputs.all, DType::kI32, Shape{InputPlaces(limits).end});
    if (seat.world_rank == 0) {
      visit(pinned.results, DType::kI32, Shape{2, plan.data * limits.max_tokens});
    }
  }
}

/// Names each buffer, its dtype and its shape: once, for the budget and for the allocation.
template <class Visit>
void ForEachActivation(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                       const ServingOptions& options, Activations& a, Visit visit) {
  const ModelDescription& m = source.model();
  const StepLimits limits = LimitsOf(m, plan, options);
  const Device device = options.device;
  const std::int64_t tokens = limits.max_tokens;
  const std::int64_t heads = OwnedHeads(m, seat.tensor, plan.tensor).size();
  const std::int64_t kv_width = OwnedKvHeads(m, seat.tensor, plan.tensor).size() * m.head_dim;
  const auto subtrees =
      static_cast<std::int64_t>(MaximalSubtrees(OwnedChunks(seat.tensor, plan.tensor)).size());
  const ExchangeSizes sizes = ExchangeSizesOf(m, limits, device);
  const std::int64_t expert_rows = MaxExpertRows(plan, seat, sizes);
  const std::int64_t expert_width =
      ColumnsOfChunks(m.expert_hidden, OwnedChunks(seat.expert_tensor, plan.expert_tensor)).size();
  const bool leader = seat.world_rank == 0;

  std::int64_t workspace = 0;
  MatrixLayout gate;
  std::int64_t own_vocabulary = 0;
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) continue;
    const MatrixLayout layout = LayoutOf(spec, source.format(i), m, plan, seat);
    if (spec.role == WeightRole::kExpertGate) {
      gate = layout;
    } else if (spec.role == WeightRole::kExpertDown) {
      workspace =
          std::max(workspace, GatedExpertsWorkspaceBytes(gate, layout, expert_rows, device));
    } else if (!spec.expert_stack) {
      workspace = std::max(workspace, MatmulWorkspaceBytes(layout, tokens, device));
    }
    if (spec.sharding == Sharding::kByVocabulary) own_vocabulary = layout.columns.size();
  }

  visit("inputs", a.inputs.all, DType::kI32, Shape{InputPlaces(limits).end});
  visit("inputs", a.kv_heads, DType::kI32, Shape{heads});
  visit("inputs", a.frequencies, DType::kF32, Shape{m.head_dim / 2});
  visit("activations", a.hidden, DType::kF32, Shape{tokens, m.hidden});
  visit("activations", a.normed, DType::kF32, Shape{tokens, m.hidden});
  visit("activations", a.block_out, DType::kF32, Shape{tokens, m.hidden});
  visit("activations", a.query, DType::kF32, Shape{tokens, heads * m.head_dim});
  visit("activations", a.key, DType::kF32, Shape{tokens, kv_width});
  visit("activations", a.value, DType::kF32, Shape{tokens, kv_width});
  visit("activations", a.attended, DType::kF32, Shape{tokens, heads * m.head_dim});
  visit("activations", a.attention_partials, DType::kF32, Shape{subtrees * tokens, m.hidden});
  visit("activations", a.router_logits, DType::kF32, Shape{tokens, m.experts});
  visit("activations", a.topk_ids, DType::kI32, Shape{m.layers * tokens, m.top_k});
  visit("activations", a.topk_weights, DType::kF32, Shape{tokens, m.top_k});
  visit("activations", a.expert_hidden, DType::kF32, Shape{expert_rows, expert_width});
  visit("logits", a.logit_hidden, DType::kF32, Shape{limits.logit_rows, m.hidden});
  visit("logits", a.logit_shard, DType::kF32, Shape{limits.logit_rows * own_vocabulary});
  if (leader) {
    visit("logits", a.logit_arrivals, DType::kF32,
          Shape{plan.data * limits.logit_rows * m.vocabulary});
    visit("logits", a.logits, DType::kF32, Shape{plan.data * limits.logit_rows, m.vocabulary});
    visit("logits", a.targets, DType::kI32, Shape{plan.data * tokens});
    visit("logits", a.results, DType::kI32, Shape{2, plan.data * tokens});
    visit("workspaces", a.sample_workspace, DType::kU8,
          Shape{SampleWorkspaceBytes(m.vocabulary, limits.logit_rows, limits.context, device)});
  }
  if (device == Device::kCuda && plan.world() > 1) {
    visit("logits", a.drawn, DType::kI32, Shape{plan.data * tokens});
  }
  visit("workspaces", a.matmul_workspace, DType::kU8, Shape{workspace});
  visit("workspaces", a.attention_workspace, DType::kU8,
        Shape{PagedAttentionWorkspaceBytes(tokens, heads, m.head_dim,
                                           limits.max_pages * kPageTokens, device)});
  visit("workspaces", a.all_reduce_workspace, DType::kU8,
        Shape{AllReduceTreeBytes(plan.tensor, tokens, m.hidden)});
  visit("expert exchange", a.exchange, DType::kU8, Shape{ExpertExchangeBytes(plan, seat, sizes)});
}

void AddTo(std::vector<MemoryLine>& lines, std::string_view what, std::int64_t bytes) {
  for (MemoryLine& line : lines) {
    if (line.what == what) {
      line.bytes += bytes;
      return;
    }
  }
  lines.push_back({std::string(what), bytes});
}

std::string_view KindOf(const WeightSpec& spec) {
  if (spec.expert_stack) return "experts";
  if (spec.sharding == Sharding::kByVocabulary) return "embedding and output";
  return spec.sharding == Sharding::kReplicated ? "norms and routers" : "attention";
}

}  // namespace

ExchangeSizes ExchangeSizesOf(const ModelDescription& model, const StepLimits& limits,
                              Device device) {
  return {.hidden = model.hidden,
          .experts = static_cast<int>(model.experts),
          .top_k = static_cast<int>(model.top_k),
          .max_tokens = limits.max_tokens,
          .device = device};
}

StepLimits LimitsOf(const ModelDescription& model, const ParallelPlan& plan,
                    const ServingOptions& options) {
  std::int64_t page_bytes = 0;  // of the rank with the most KV heads, over all layers
  for (int index = 0; index < plan.tensor; ++index) {
    page_bytes = std::max(
        page_bytes, KvLayerShape(model, plan, index, options.kv_type).PageBytes() * model.layers);
  }
  const std::int64_t context = std::min(model.context, options.context.value_or(model.context));
  const std::int64_t context_pages = DivideUp(context, kPageTokens);
  StepLimits limits;
  limits.num_pages = std::min(options.kv_memory / page_bytes, context_pages * options.max_running);
  if (limits.num_pages < 1) {
    throw UserError(ExitStatus::kConfig,
                    fmt::format("--kv-memory of {} bytes holds no page of {} tokens: at least {} "
                                "bytes are needed",
                                options.kv_memory, kPageTokens, page_bytes));
  }
  limits.max_pages = std::min(context_pages, limits.num_pages);
  limits.context = std::min(context, limits.max_pages * kPageTokens);
  limits.max_sequences = options.max_running;
  limits.max_tokens = std::max(options.prefill_chunk, options.max_running);
  limits.logit_rows = kLogitRows;
  if (options.device == Device::kCuda) {
    limits.logit_rows = std::max(limits.logit_rows, limits.max_sequences);
  }
  limits.logit_rows = std::min(limits.max_tokens, limits.logit_rows);
  return limits;
}

MemoryPlan PlanMemory(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                      const ServingOptions& options) {
  const ModelDescription& model = source.model();
  MemoryPlan memory;
  memory.limits = LimitsOf(model, plan, options);
  const bool on_gpu = options.device == Device::kCuda;
  memory.weights_mapped = source.packed() && !on_gpu;
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    std::int64_t bytes = 0;
    if (spec.n == 0) {
      bytes = ArenaBytes(spec.k * SizeOf(DType::kF32));
    } else {
      const MatrixLayout layout = LayoutOf(spec, source.format(i), model, plan, seat);
      bytes = ArenaBytes(layout.WeightBytes()) + ArenaBytes(layout.ScaleBytes());
    }
    memory.weight_bytes += bytes;
    AddTo(memory.lines, KindOf(spec), bytes);
  }
  const KvLayer kv = KvLayerShape(model, plan, seat.tensor, options.kv_type);
  memory.kv_bytes = ArenaBytes(kv.PageBytes() * memory.limits.num_pages) * model.layers;
  AddTo(memory.lines, "KV pages", memory.kv_bytes);

  Activations activations;
  ForEachActivation(source, plan, seat, options, activations,
                    [&](std::string_view what, TensorView&, DType dtype, const Shape& shape) {
                      const std::int64_t bytes = ArenaBytes(shape.elements() * SizeOf(dtype));
                      memory.activation_bytes += bytes;
                      AddTo(memory.lines, what, bytes);
                    });
  if (!on_gpu) {
    memory.segment_bytes = SegmentBytesOf(plan);
    AddTo(memory.lines, "message segments", memory.segment_bytes);
    return memory;
  }
  PinnedRing pinned;
  ForEachPinned(plan, seat, memory.limits, pinned,
                [&](TensorView&, DType dtype, const Shape& shape) {
                  memory.pinned_bytes += ArenaBytes(shape.elements() * SizeOf(dtype));
                });
  if (source.packed()) {
    memory.pinned_loading_bytes = 2 * std::min(memory.weight_bytes, kUploadBytes);
  } else if (source.has_files()) {
    const LoadingBuffers buffers = LoadingBuffersOf(source, plan, seat);
    memory.loading_bytes = 2 * buffers.piece_bytes + buffers.flag_bytes;
    memory.pinned_loading_bytes = 2 * buffers.piece_bytes;
  }
  AddTo(memory.lines, "loading", memory.loading_bytes);
  AddTo(memory.lines, "pinned host memory", memory.pinned_bytes);
  AddTo(memory.lines, "pinned host memory, loading", memory.pinned_loading_bytes);
  return memory;
}

std::vector<WeightMemory> TakeWeights(const ModelSource& source, const ParallelPlan& plan,
                                      const Seat& seat, Arena& arena, Weights& weights) {
  const ModelDescription& model = source.model();
  weights.layers.resize(static_cast<std::size_t>(model.layers));
  std::vector<WeightMemory> memory(source.weights().size());
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) {
      memory[i].data = arena.Take(DType::kF32, Shape{spec.k});
      VectorOf(weights, spec) = memory[i].data;
      continue;
    }
    const MatrixLayout layout = LayoutOf(spec, source.format(i), model, plan, seat);
    memory[i].data = arena.Take(DType::kU8, Shape{layout.WeightBytes()});
    if (layout.ScaleBytes() > 0) {
      memory[i].scales = arena.Take(DType::kF32, Shape{layout.ScaleBytes() / 4});
    }
    MatrixOf(weights, spec) = {
        .layout = layout,
        .data = memory[i].data.raw(),
        .scales = memory[i].scales.empty() ? nullptr : memory[i].scales.data<float>(),
        .device = memory[i].data.device()};
  }
  if (model.tied_output) weights.output = weights.embedding;
  return memory;
}

Activations TakeActivations(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                            const ServingOptions& options, Arena& arena) {
  Activations activations;
  ForEachActivation(source, plan, seat, options, activations,
                    [&](std::string_view, TensorView& buffer, DType dtype, const Shape& shape) {
                      buffer = arena.Take(dtype, shape);
                    });
  DivideInputs(LimitsOf(source.model(), plan, options), activations.inputs);
  return activations;
}

PinnedRing TakePinned(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                      const ServingOptions& options, Arena& arena) {
  const StepLimits limits = LimitsOf(source.model(), plan, options);
  PinnedRing ring;
  ForEachPinned(plan, seat, limits, ring, [&](TensorView& buffer, DType dtype, const Shape& shape) {
    buffer = arena.Take(dtype, shape);
  });
  for (PinnedBuffers& pinned : ring) DivideInputs(limits, pinned.inputs);
  return ring;
}

std::vector<KvLayer> TakeKvLayers(const ModelDescription& model, const ParallelPlan& plan,
                                  const Seat& seat, const ServingOptions& options, Arena& arena) {
  KvLayer layer = KvLayerShape(model, plan, seat.tensor, options.kv_type);
  layer.num_pages = LimitsOf(model, plan, options).num_pages;
  std::vector<KvLayer> layers;
  for (std::int64_t i = 0; i < model.layers; ++i) {
    const TensorView memory = arena.Take(DType::kU8, Shape{layer.PageBytes() * layer.num_pages});
    layer.data = memory.raw();
    layer.device = memory.device();
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace jubal

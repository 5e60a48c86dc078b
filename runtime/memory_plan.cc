#include "runtime/memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"
#include "kernels/sample.h"
#include "parallel/all_reduce.h"
#include "parallel/mesh.h"

namespace jubal {
namespace {

/// Most rows of logits in one pass over the output matrix. More save passes, at
/// 2 · vocabulary · 4 bytes a row on the leader.
constexpr std::int64_t kMaxLogitRows = 32;

KvLayer KvLayerShape(const ModelDescription& model, const ParallelPlan& plan, int tensor_index,
                     KvType type) {
  return {.heads = OwnedKvHeads(model, tensor_index, plan.tensor).size(),
          .head_dim = model.head_dim,
          .type = type};
}

/// Names each buffer, its dtype and its shape: once, for the budget and for the allocation.
template <class Visit>
void ForEachActivation(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                       const StepLimits& limits, Activations& a, Visit visit) {
  const ModelDescription& m = source.model();
  const std::int64_t tokens = limits.max_tokens;
  const std::int64_t heads = OwnedHeads(m, seat.tensor, plan.tensor).size();
  const std::int64_t kv_width = OwnedKvHeads(m, seat.tensor, plan.tensor).size() * m.head_dim;
  const auto subtrees =
      static_cast<std::int64_t>(MaximalSubtrees(OwnedChunks(seat.tensor, plan.tensor)).size());
  const ExchangeSizes sizes = ExchangeSizesOf(m, limits);
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
      workspace = std::max(workspace, GatedExpertsWorkspaceBytes(gate, layout, expert_rows));
    } else if (!spec.expert_stack) {
      workspace = std::max(workspace, MatmulWorkspaceBytes(layout, tokens));
    }
    if (spec.sharding == Sharding::kByVocabulary) own_vocabulary = layout.columns.size();
  }

  visit("inputs", a.token_ids, DType::kI32, Shape{tokens});
  visit("inputs", a.positions, DType::kI32, Shape{tokens});
  visit("inputs", a.sequences, DType::kI32, Shape{tokens});
  visit("inputs", a.page_table, DType::kI32, Shape{limits.max_sequences * limits.max_pages});
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
  visit("activations", a.topk_ids, DType::kI32, Shape{tokens, m.top_k});
  visit("activations", a.topk_weights, DType::kF32, Shape{tokens, m.top_k});
  visit("activations", a.expert_hidden, DType::kF32, Shape{expert_rows, expert_width});
  visit("logits", a.logit_index, DType::kI32, Shape{limits.logit_rows});
  visit("logits", a.logit_count, DType::kI32, Shape{1});
  visit("logits", a.logit_hidden, DType::kF32, Shape{limits.logit_rows, m.hidden});
  visit("logits", a.logit_shard, DType::kF32, Shape{limits.logit_rows * own_vocabulary});
  if (leader) {
    visit("logits", a.logit_arrivals, DType::kF32,
          Shape{plan.data * limits.logit_rows * m.vocabulary});
    visit("logits", a.logits, DType::kF32, Shape{limits.logit_rows, m.vocabulary});
    visit("workspaces", a.sample_workspace, DType::kU8, Shape{SampleWorkspaceBytes(m.vocabulary)});
  }
  visit("workspaces", a.matmul_workspace, DType::kU8, Shape{workspace});
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

ExchangeSizes ExchangeSizesOf(const ModelDescription& model, const StepLimits& limits) {
  return {.hidden = model.hidden,
          .experts = static_cast<int>(model.experts),
          .top_k = static_cast<int>(model.top_k),
          .max_tokens = limits.max_tokens};
}

StepLimits LimitsOf(const ModelDescription& model, const ParallelPlan& plan,
                    const ServingOptions& options) {
  std::int64_t page_bytes = 0;  // of the rank with the most KV heads, over all layers
  for (int index = 0; index < plan.tensor; ++index) {
    page_bytes = std::max(
        page_bytes, KvLayerShape(model, plan, index, options.kv_type).PageBytes() * model.layers);
  }
  const std::int64_t context = std::min(model.context, options.context.value_or(model.context));
  const std::int64_t context_pages = (context + kPageTokens - 1) / kPageTokens;
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
  limits.logit_rows = std::min(limits.max_tokens, kMaxLogitRows);
  return limits;
}

MemoryPlan PlanMemory(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                      const ServingOptions& options) {
  const ModelDescription& model = source.model();
  MemoryPlan memory;
  memory.limits = LimitsOf(model, plan, options);
  memory.weights_mapped = source.packed();
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
  ForEachActivation(source, plan, seat, memory.limits, activations,
                    [&](std::string_view what, TensorView&, DType dtype, const Shape& shape) {
                      const std::int64_t bytes = ArenaBytes(shape.elements() * SizeOf(dtype));
                      memory.activation_bytes += bytes;
                      AddTo(memory.lines, what, bytes);
                    });
  memory.segment_bytes = SegmentBytesOf(plan);
  AddTo(memory.lines, "message segments", memory.segment_bytes);
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
        .scales = memory[i].scales.empty() ? nullptr : memory[i].scales.data<float>()};
  }
  if (model.tied_output) weights.output = weights.embedding;
  return memory;
}

Activations TakeActivations(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                            const ServingOptions& options, Arena& arena) {
  Activations activations;
  ForEachActivation(source, plan, seat, LimitsOf(source.model(), plan, options), activations,
                    [&](std::string_view, TensorView& buffer, DType dtype, const Shape& shape) {
                      buffer = arena.Take(dtype, shape);
                    });
  return activations;
}

std::vector<KvLayer> TakeKvLayers(const ModelDescription& model, const ParallelPlan& plan,
                                  const Seat& seat, const ServingOptions& options, Arena& arena) {
  KvLayer layer = KvLayerShape(model, plan, seat.tensor, options.kv_type);
  layer.num_pages = LimitsOf(model, plan, options).num_pages;
  std::vector<KvLayer> layers;
  for (std::int64_t i = 0; i < model.layers; ++i) {
    layer.data = arena.Take(DType::kU8, Shape{layer.PageBytes() * layer.num_pages}).raw();
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace jubal

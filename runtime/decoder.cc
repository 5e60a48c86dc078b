#include "runtime/decoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "kernels/add.h"
#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/embed.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/route_top_k.h"
#include "kernels/run.h"
#include "parallel/all_reduce.h"
#include "runtime/checkpoint/mapped_file.h"
#include "runtime/mapped_weights.h"
#include "runtime/random_weights.h"

namespace jubal {
namespace {

ConstTensorView HostVector(const std::vector<std::int32_t>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::kI32,
          Shape{static_cast<std::int64_t>(values.size())}};
}

void UploadVector(TensorView out, const std::vector<std::int32_t>& values, Stream& stream) {
  Run(Copy{.out = out.Rows(0, static_cast<std::int64_t>(values.size())), .x = HostVector(values)},
      stream);
}

/// The local KV head that each of the rank's query heads reads.
std::vector<std::int32_t> LocalKvHeads(const ModelDescription& model, Range heads, Range kv_heads) {
  std::vector<std::int32_t> local;
  for (std::int64_t head = heads.begin; head < heads.end; ++head) {
    local.push_back(
        static_cast<std::int32_t>(head / (model.heads / model.kv_heads) - kv_heads.begin));
  }
  return local;
}

/// Rope's turn per position of each pair of elements: theta^(−2i/d).
std::vector<float> RopeFrequencies(double theta, std::int64_t head_dim) {
  std::vector<float> frequencies;
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    frequencies.push_back(static_cast<float>(
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim))));
  }
  return frequencies;
}

/// Rows of slice `slice` of a group's logit rows.
std::int64_t SliceRows(const GroupStep& group, std::int64_t slice, std::int64_t logit_rows) {
  const auto wanted = static_cast<std::int64_t>(group.logit_rows.size());
  return std::clamp<std::int64_t>(wanted - slice * logit_rows, 0, logit_rows);
}

}  // namespace

Decoder::Decoder(const ModelSource& source, const Mesh& mesh, const ServingOptions& options,
                 const LoadProgress& progress)
    : model_(source.model()),
      mesh_(mesh),
      memory_(PlanMemory(source, mesh.plan, mesh.seat, options)),
      weight_arena_(memory_.weights_mapped ? 0 : memory_.weight_bytes),
      kv_arena_(memory_.kv_bytes),
      activation_arena_(mesh.node->NewArena(memory_.activation_bytes)),
      weights_(source.packed()      ? MapWeights(source, mesh, progress)
               : source.has_files() ? LoadWeights(source, mesh, weight_arena_, progress)
                                    : RandomWeights(source, mesh, weight_arena_, progress)),
      kv_(TakeKvLayers(model_, mesh.plan, mesh.seat, options, kv_arena_)),
      a_(TakeActivations(source, mesh.plan, mesh.seat, options, activation_arena_)),
      exchange_(MakeExpertExchange(mesh, ExchangeSizesOf(model_, memory_.limits), a_.exchange)) {
  CHECK_EQ(weight_arena_.bytes_left(), 0);
  CHECK_EQ(kv_arena_.bytes_left(), 0);
  CHECK_EQ(activation_arena_.bytes_left(), 0);
  UploadVector(a_.kv_heads,
               LocalKvHeads(model_, OwnedHeads(model_, mesh.seat.tensor, mesh.plan.tensor),
                            OwnedKvHeads(model_, mesh.seat.tensor, mesh.plan.tensor)),
               stream_);
  const std::vector<float> frequencies = RopeFrequencies(model_.rope_theta, model_.head_dim);
  Run(Copy{.out = a_.frequencies,
           .x = {reinterpret_cast<const std::byte*>(frequencies.data()), DType::kF32,
                 a_.frequencies.shape()}},
      stream_);
}

ConstTensorView Decoder::weight_memory() const {
  if (weights_.mapping == nullptr) return weight_arena_.memory();
  // A part of the file for each rank of the node: what two read at once would come from a cache.
  const std::span<const std::byte> file = weights_.mapping->bytes();
  const Range share =
      OwnedRange(static_cast<std::int64_t>(file.size()), mesh_.node->rank(), mesh_.node->size());
  return {file.data() + share.begin, DType::kU8, Shape{share.size()}};
}

void Decoder::Forward(const StepPlan& plan, const LogitsSink& sink) {
  std::vector<std::int64_t> tokens_of_group;
  for (const GroupStep& group : plan.groups) tokens_of_group.push_back(group.num_tokens());
  CHECK_EQ(tokens_of_group.size(), static_cast<std::size_t>(mesh_.plan.data));
  exchange_->BeginStep(tokens_of_group);
  UploadInputs(plan.groups[static_cast<std::size_t>(mesh_.seat.data)]);

  EmbedTokens();  // → hidden
  for (std::int64_t layer = 0; layer < model_.layers; ++layer) Layer(layer);
  Logits(plan, sink);
}

void Decoder::UploadInputs(const GroupStep& step) {
  tokens_ = step.num_tokens();
  CHECK_LE(tokens_, memory_.limits.max_tokens);
  UploadVector(a_.token_ids, step.tokens, stream_);
  UploadVector(a_.positions, step.positions, stream_);
  UploadVector(a_.sequences, step.sequences, stream_);
  UploadVector(a_.page_table, step.page_table, stream_);
  const auto entries = static_cast<std::int64_t>(step.page_table.size());
  const std::int64_t max_pages = std::max<std::int64_t>(step.max_pages, 1);
  places_ = {
      .positions = a_.positions.Rows(0, tokens_),
      .sequences = a_.sequences.Rows(0, tokens_),
      .page_table = a_.page_table.Rows(0, entries).Reshaped(Shape{entries / max_pages, max_pages})};
}

// Each rank looks up the rows it holds; the others bring zeros, so the sum is exact.
void Decoder::EmbedTokens() {
  const std::int64_t subtrees = a_.attention_partials.size(0) / memory_.limits.max_tokens;
  const TensorView partials = a_.attention_partials.Rows(0, subtrees * tokens_);
  Run(Zero{.out = partials}, stream_);
  Run(Embed{.out = partials.Rows(0, tokens_),
            .token_ids = a_.token_ids.Rows(0, tokens_),
            .table = weights_.embedding,
            .multiplier = model_.embedding_multiplier},
      stream_);
  Run(AllReduceTree{.out = Tokens(a_.hidden),
                    .partials = partials.Reshaped(Shape{subtrees, tokens_, model_.hidden}),
                    .workspace = a_.all_reduce_workspace},
      *mesh_.tensor, stream_);
}

// Norms go before both halves and, in families that have them, after, ahead of the residual add.
void Decoder::Layer(std::int64_t layer) {
  const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const TensorView hidden = Tokens(a_.hidden);
  const TensorView normed = Tokens(a_.normed);
  const TensorView block_out = Tokens(a_.block_out);
  const float epsilon = model_.norm_epsilon;

  Run(RmsNorm{.out = normed, .x = hidden, .scale = w.attention_norm, .epsilon = epsilon}, stream_);
  Attention(w, kv_[static_cast<std::size_t>(layer)]);  // normed → block_out
  if (!w.attention_out_norm.empty()) {
    Run(
        RmsNorm{
            .out = block_out, .x = block_out, .scale = w.attention_out_norm, .epsilon = epsilon},
        stream_);
  }
  Run(Add{.into = hidden, .x = block_out}, stream_);

  Run(RmsNorm{.out = normed, .x = hidden, .scale = w.moe_norm, .epsilon = epsilon}, stream_);
  Experts(layer, w);  // normed → block_out
  if (!w.moe_out_norm.empty()) {
    Run(RmsNorm{.out = block_out, .x = block_out, .scale = w.moe_out_norm, .epsilon = epsilon},
        stream_);
  }
  Run(Add{.into = hidden, .x = block_out}, stream_);
}

void Decoder::Attention(const LayerWeights& w, const KvLayer& pages) {
  const TensorView normed = Tokens(a_.normed);
  const TensorView query = Tokens(a_.query);
  const TensorView key = Tokens(a_.key);
  const TensorView value = Tokens(a_.value);
  const TensorView attended = Tokens(a_.attended);
  const TensorView workspace = a_.matmul_workspace;

  // The heads that this rank's chunks of the output product touch.
  const std::array<Matmul, 3> projections{
      Matmul{.out = query, .x = normed, .weight = w.query, .workspace = workspace},
      Matmul{.out = key, .x = normed, .weight = w.key, .workspace = workspace},
      Matmul{.out = value, .x = normed, .weight = w.value, .workspace = workspace}};
  Run(Matmuls{.products = projections}, stream_);
  Run(Rope{.heads = query, .positions = places_.positions, .frequencies = a_.frequencies}, stream_);
  Run(Rope{.heads = key, .positions = places_.positions, .frequencies = a_.frequencies}, stream_);
  Run(StoreKv{.pages = pages, .k = key, .v = value, .places = places_}, stream_);
  Run(PagedAttention{.out = attended,
                     .q = query,
                     .pages = pages,
                     .places = places_,
                     .kv_heads = a_.kv_heads,
                     .scale = model_.attention_scale,
                     .soft_cap = model_.attention_soft_cap},
      stream_);

  // A chunk may begin inside a head: of the heads computed, only the chunks' own columns count.
  const Range rows = w.attention_out.layout.InputRows();
  const std::int64_t skipped = rows.begin - w.query.layout.columns.begin;
  const std::int64_t subtrees = a_.attention_partials.size(0) / memory_.limits.max_tokens;
  const TensorView partials = a_.attention_partials.Rows(0, subtrees * tokens_)
                                  .Reshaped(Shape{subtrees, tokens_, model_.hidden});
  Run(MatmulPartials{.out = partials,
                     .x = attended.Columns(rows.empty() ? 0 : skipped, rows.size()),
                     .weight = w.attention_out,
                     .workspace = workspace},
      stream_);
  Run(
      AllReduceTree{
          .out = Tokens(a_.block_out), .partials = partials, .workspace = a_.all_reduce_workspace},
      *mesh_.tensor, stream_);
}

void Decoder::Experts(std::int64_t layer, const LayerWeights& w) {
  const TensorView normed = Tokens(a_.normed);
  const TensorView logits = Tokens(a_.router_logits);
  const TensorView topk_ids = Tokens(a_.topk_ids);
  const TensorView topk_weights = Tokens(a_.topk_weights);
  const TensorView workspace = a_.matmul_workspace;

  Run(Matmul{.out = logits, .x = normed, .weight = w.router, .workspace = workspace}, stream_);
  Run(RouteTopK{.topk_ids = topk_ids,
                .topk_weights = topk_weights,
                .logits = logits,
                .renormalize = model_.renormalize_router},
      stream_);
  if (routing_observer_) routing_observer_(layer, topk_ids);

  const ExpertBatch batch = exchange_->Dispatch(normed, topk_ids, stream_);  // tokens to experts
  Run(GatedExperts{.out = batch.partials,
                   .x = batch.tokens,
                   .offsets = batch.offsets,
                   .gate = w.expert_gate,
                   .up = w.expert_up,
                   .down = w.expert_down,
                   .activation = model_.activation,
                   .hidden = a_.expert_hidden,
                   .workspace = workspace},
      stream_);
  exchange_->Combine(Tokens(a_.block_out), topk_ids, topk_weights, stream_);  // results come home
}

// In slices, so that no buffer grows with the number of rows that are scored.
void Decoder::Logits(const StepPlan& plan, const LogitsSink& sink) {
  const GroupStep& mine = plan.groups[static_cast<std::size_t>(mesh_.seat.data)];
  const std::int64_t slice_rows = memory_.limits.logit_rows;
  std::int64_t most = 0;
  for (const GroupStep& group : plan.groups) {
    most = std::max(most, static_cast<std::int64_t>(group.logit_rows.size()));
  }
  for (std::int64_t slice = 0; slice * slice_rows < most; ++slice) {
    const std::int64_t rows = SliceRows(mine, slice, slice_rows);
    if (rows > 0) {
      const auto first = mine.logit_rows.begin() + slice * slice_rows;
      UploadVector(a_.logit_index, {first, first + rows}, stream_);
      UploadVector(a_.logit_count, {static_cast<std::int32_t>(rows)}, stream_);
      const TensorView hidden = a_.logit_hidden.Rows(0, rows);
      Run(GatherRows{.out = hidden,
                     .x = Tokens(a_.hidden),
                     .index = a_.logit_index.Rows(0, rows),
                     .count = a_.logit_count},
          stream_);
      Run(RmsNorm{.out = hidden,
                  .x = hidden,
                  .scale = weights_.final_norm,
                  .epsilon = model_.norm_epsilon},
          stream_);
      const std::int64_t own = weights_.output.layout.columns.size();
      Run(Matmul{.out = a_.logit_shard.Rows(0, rows * own).Reshaped(Shape{rows, own}),
                 .x = hidden,
                 .weight = weights_.output,
                 .multiplier = model_.logit_multiplier,
                 .workspace = a_.matmul_workspace},
          stream_);
    }
    GatherLogits(plan, slice, rows, sink);
  }
}

// Every rank sends its columns of the vocabulary to the leader, which puts them side by side.
void Decoder::GatherLogits(const StepPlan& plan, std::int64_t slice, std::int64_t rows,
                           const LogitsSink& sink) {
  const int world = mesh_.world->size();
  const std::int64_t slice_rows = memory_.limits.logit_rows;
  const MatrixLayout& own = weights_.output.layout;
  if (world == 1) {
    sink(slice * slice_rows, a_.logit_shard.Rows(0, rows * own.n).Reshaped(Shape{rows, own.n}));
    return;
  }

  std::vector<std::int64_t> send(static_cast<std::size_t>(world), 0);
  std::vector<std::int64_t> receive(static_cast<std::size_t>(world), 0);
  std::vector<Range> columns;
  send[0] = rows * own.columns.size();
  if (mesh_.leader()) {
    for (int rank = 0; rank < world; ++rank) {
      const Seat seat = SeatOf(mesh_.plan, rank);
      columns.push_back(OwnedVocabulary(own.n, seat.tensor, mesh_.plan.tensor));
      receive[static_cast<std::size_t>(rank)] =
          SliceRows(plan.groups[static_cast<std::size_t>(seat.data)], slice, slice_rows) *
          columns.back().size();
    }
  }
  const TensorView none(a_.logit_count.raw(), DType::kF32, Shape{0, 1});
  const auto as_rows = [](TensorView v) { return v.Reshaped(Shape{v.size(0), 1}); };
  mesh_.world->AllToAllRows(mesh_.leader() ? as_rows(a_.logit_arrivals) : none, receive,
                            as_rows(a_.logit_shard), send, stream_);
  if (!mesh_.leader()) return;

  std::int64_t arrived = 0;
  std::int64_t first = slice * slice_rows;
  for (int group = 0; group < mesh_.plan.data; ++group) {
    const GroupStep& step = plan.groups[static_cast<std::size_t>(group)];
    const std::int64_t group_rows = SliceRows(step, slice, slice_rows);
    for (int rank = group * mesh_.plan.tensor; rank < (group + 1) * mesh_.plan.tensor; ++rank) {
      const Range part = columns[static_cast<std::size_t>(rank)];
      if (group_rows == 0 || part.empty()) continue;
      Run(Copy{.out = a_.logits.Rows(0, group_rows).Columns(part.begin, part.size()),
               .x = a_.logit_arrivals.Rows(arrived, group_rows * part.size())
                        .Reshaped(Shape{group_rows, part.size()})},
          stream_);
      arrived += group_rows * part.size();
    }
    if (group_rows > 0) sink(first, a_.logits.Rows(0, group_rows));
    first += static_cast<std::int64_t>(step.logit_rows.size());
  }
}

}  // namespace jubal

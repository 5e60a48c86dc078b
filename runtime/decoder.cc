#include "runtime/decoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/add.h"
#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/embed.h"
#include "kernels/fill_drawn_tokens.h"
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

template <class T>
void UploadVector(TensorView out, const std::vector<T>& values, Stream& stream) {
  Run(Copy{.out = out,
           .x = {reinterpret_cast<const std::byte*>(values.data()), DTypeOf<T>(),
                 Shape{static_cast<std::int64_t>(values.size())}}},
      stream);
}

/// Writes the values, and the first of them again until there are `count`. `out` is on the host.
void WriteFilled(TensorView out, const std::vector<std::int32_t>& values, std::int64_t count) {
  const auto given = static_cast<std::int64_t>(values.size());
  CHECK(given == count || (given > 0 && given < count));
  auto* const to = out.Rows(0, count).data<std::int32_t>();
  std::copy(values.begin(), values.end(), to);
  std::fill(to + given, to + count, given == 0 ? 0 : values.front());
}

/// Elements as rows of one.
TensorView AsRows(TensorView vector) { return vector.Reshaped(Shape{vector.size(0), 1}); }

Stream StreamOn(Gpu* gpu) {
  if (gpu == nullptr) return Stream();
  return Stream(*gpu);
}

Arena ArenaOn(Gpu* gpu, std::int64_t bytes) {
  return gpu == nullptr ? Arena(bytes) : Arena(*gpu, bytes);
}

Arena PinnedArena(Gpu* gpu, std::int64_t bytes) {
  if (bytes == 0) return Arena();
  std::shared_ptr<std::byte> memory = gpu->AllocatePinned(bytes);
  std::fill_n(memory.get(), bytes, std::byte{0});
  return Arena(std::move(memory), bytes);
}

Weights WeightsOf(const ModelSource& source, const Mesh& mesh, const MemoryPlan& plan, Arena& arena,
                  Stream& stream, const LoadProgress& progress) {
  if (plan.weights_mapped) return MapWeights(source, mesh, progress);
  if (source.packed()) return UploadPack(source, mesh, arena, stream.gpu(), progress);
  if (source.has_files()) return LoadWeights(source, mesh, arena, stream, progress);
  return RandomWeights(source, mesh, arena, stream, progress);
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

/// Rows of graphs: 1, 2, 4, 8, then in steps of 8; and `most`.
std::vector<std::int64_t> RowsOfGraphs(std::int64_t most) {
  std::vector<std::int64_t> all;
  for (std::int64_t rows = 1; rows < most; rows += std::min<std::int64_t>(rows, 8)) {
    all.push_back(rows);
  }
  all.push_back(most);
  return all;
}

}  // namespace

Decoder::Decoder(const ModelSource& source, const Mesh& mesh, const ServingOptions& options,
                 const LoadProgress& progress, Gpu* gpu)
    : model_(source.model()),
      mesh_(mesh),
      memory_(PlanMemory(source, mesh.plan, mesh.seat, options)),
      weight_arena_(ArenaOn(gpu, memory_.weights_mapped ? 0 : memory_.weight_bytes)),
      kv_arena_(ArenaOn(gpu, memory_.kv_bytes)),
      activation_arena_(gpu == nullptr ? mesh.node->NewArena(memory_.activation_bytes)
                                       : Arena(*gpu, memory_.activation_bytes)),
      pinned_arena_(PinnedArena(gpu, memory_.pinned_bytes)),
      stream_(StreamOn(gpu)),
      weights_(WeightsOf(source, mesh, memory_, weight_arena_, stream_, progress)),
      kv_(TakeKvLayers(model_, mesh.plan, mesh.seat, options, kv_arena_)),
      a_(TakeActivations(source, mesh.plan, mesh.seat, options, activation_arena_)),
      exchange_(MakeExpertExchange(mesh, ExchangeSizesOf(model_, memory_.limits, options.device),
                                   a_.exchange)) {
  CHECK(options.device == stream_.device());
  if (gpu != nullptr) {
    pinned_ = TakePinned(source, mesh.plan, mesh.seat, options, pinned_arena_);
    for (std::unique_ptr<Stream>& upload : uploads_) upload = std::make_unique<Stream>(*gpu);
    records_graphs_ =
        mesh.world->capturable() && mesh.tensor->capturable() && mesh.data->capturable();
  }
  CHECK_EQ(weight_arena_.bytes_left(), 0);
  CHECK_EQ(kv_arena_.bytes_left(), 0);
  CHECK_EQ(activation_arena_.bytes_left(), 0);
  CHECK_EQ(pinned_arena_.bytes_left(), 0);
  UploadVector(a_.kv_heads,
               LocalKvHeads(model_, OwnedHeads(model_, mesh.seat.tensor, mesh.plan.tensor),
                            OwnedKvHeads(model_, mesh.seat.tensor, mesh.plan.tensor)),
               stream_);
  UploadVector(a_.frequencies, RopeFrequencies(model_.rope_theta, model_.head_dim), stream_);
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
  CHECK_EQ(plan.groups.size(), static_cast<std::size_t>(mesh_.plan.data));
  std::optional<Rows> of_graph = GraphRowsOf(plan);
  if (of_graph) {
    exchange_->BeginStep(of_graph->tokens);
    if (!exchange_->capturable()) of_graph.reset();
  }
  rows_ = of_graph ? *of_graph : RowsOf(plan);
  if (!of_graph) exchange_->BeginStep(rows_.tokens);
  const auto mine = static_cast<std::size_t>(mesh_.seat.data);
  UploadInputs(plan.groups[mine], rows_.tokens[mine], rows_.logits[mine]);
  const std::vector<TokenId>& tokens = plan.groups[mine].tokens;
  if (std::any_of(tokens.begin(), tokens.end(), IsPending)) {
    Run(FillDrawnTokens{.token_ids = a_.inputs.token_ids.Rows(0, tokens_), .drawn = Drawn()},
        stream_);
  }

  if (of_graph) {
    RunGraph();
    HandOver(plan, /*slice=*/0, sink);
  } else {
    Layers();
    // In slices, so that no buffer grows with the number of rows that are scored.
    const std::int64_t most = *std::max_element(rows_.logits.begin(), rows_.logits.end());
    for (std::int64_t slice = 0; slice * memory_.limits.logit_rows < most; ++slice) {
      Logits(slice);
      GatherLogits(slice);
      HandOver(plan, slice, sink);
    }
  }
  if (routing_observer_) ReportRouting(plan.groups[mine].num_tokens());
}

// The leader has drawn them, and any rank may go on with them.
void Decoder::ShareDrawn(std::int64_t count) {
  const int world = mesh_.world->size();
  if (count == 0 || world == 1) return;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(world), 0);
  rows[0] = count;
  const TensorView mine = mesh_.leader() ? IdsOf(a_.results) : a_.drawn;
  mesh_.world->AllGatherRows(AsRows(a_.drawn), AsRows(mine), rows, stream_);
}

ConstTensorView Decoder::Drawn() const {
  return mesh_.world->size() > 1 ? a_.drawn : IdsOf(a_.results);
}

Decoder::Rows Decoder::RowsOf(const StepPlan& plan) const {
  Rows rows;
  for (const GroupStep& group : plan.groups) {
    rows.tokens.push_back(group.num_tokens());
    rows.logits.push_back(static_cast<std::int64_t>(group.logit_rows.size()));
  }
  return rows;
}

std::vector<std::int64_t> Decoder::GraphRows() const {
  if (!records_graphs_) return {};
  return RowsOfGraphs(memory_.limits.max_sequences);
}

std::optional<Decoder::Rows> Decoder::GraphRowsOf(const StepPlan& plan) const {
  Rows rows = RowsOf(plan);
  const std::int64_t most = *std::max_element(rows.tokens.begin(), rows.tokens.end());
  if (!records_graphs_ || rows.tokens != rows.logits || most == 0 ||
      most > memory_.limits.max_sequences) {
    return std::nullopt;
  }
  const std::vector<std::int64_t> kinds = GraphRows();
  const std::int64_t filled = *std::lower_bound(kinds.begin(), kinds.end(), most);
  for (std::int64_t& tokens : rows.tokens) {
    if (tokens > 0) tokens = filled;
  }
  rows.logits = rows.tokens;
  return rows;
}

void Decoder::RunGraph() {
  const auto [graph, is_new] = graphs_.try_emplace(rows_.tokens);
  if (!is_new) {
    stream_.queue().Launch(*graph->second);
    return;
  }
  // Not recorded at once: what kernels and communicators do at their first use cannot be.
  Compute();
  stream_.queue().BeginCapture();
  Compute();
  graph->second = stream_.queue().EndCapture();
}

void Decoder::Compute() {
  Layers();
  Logits(/*slice=*/0);
  GatherLogits(/*slice=*/0);
}

void Decoder::UploadInputs(const GroupStep& step, std::int64_t tokens, std::int64_t logit_rows) {
  const StepLimits& limits = memory_.limits;
  const bool on_gpu = stream_.device() == Device::kCuda;
  CHECK_LE(tokens, limits.max_tokens);
  Stream* upload = nullptr;
  if (on_gpu) {
    next_upload_ = (next_upload_ + 1) % uploads_.size();
    upload = uploads_[next_upload_].get();
    mesh_.world->Wait(*upload);
  }
  const StepInputs& to = on_gpu ? pinned_[next_upload_].inputs : a_.inputs;
  WriteFilled(to.token_ids, step.tokens, tokens);
  WriteFilled(to.positions, step.positions, tokens);
  WriteFilled(to.sequences, step.sequences, tokens);
  WriteFilled(to.logit_index, step.logit_rows, logit_rows);
  for (std::int64_t slice = 0; slice < to.logit_counts.size(0); ++slice) {
    to.logit_counts.data<std::int32_t>()[slice] =
        static_cast<std::int32_t>(SliceRows(logit_rows, slice));
  }
  // Graphs have one table for all: of the most rows and columns.
  const std::int64_t given = std::max<std::int64_t>(step.max_pages, 1);
  const std::int64_t sequences = static_cast<std::int64_t>(step.page_table.size()) / given;
  const std::int64_t columns = on_gpu ? limits.max_pages : given;
  CHECK_LE(given, columns);
  const std::int64_t entries = sequences * columns;
  auto* const table = to.page_table.Rows(0, entries).data<std::int32_t>();
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::copy_n(step.page_table.begin() + s * given, given, table + s * columns);
  }

  tokens_ = tokens;
  places_ = {
      .positions = a_.inputs.positions.Rows(0, tokens),
      .sequences = a_.inputs.sequences.Rows(0, tokens),
      .page_table = a_.inputs.page_table.Rows(0, entries).Reshaped(Shape{sequences, columns})};
  if (on_gpu) {
    places_.page_table = a_.inputs.page_table.Reshaped(Shape{limits.max_sequences, columns});
    const std::int64_t used = to.all.size(0) - to.page_table.size(0) + entries;
    Run(Copy{.out = a_.inputs.all.Rows(0, used), .x = to.all.Rows(0, used)}, stream_);
    upload->queue().WaitFor(stream_.queue());
  }
}

void Decoder::StoreKeysAndValues(std::int64_t layer, const GroupStep& rows, ConstTensorView keys,
                                 ConstTensorView values) {
  UploadInputs(rows, rows.num_tokens(), /*logit_rows=*/0);
  Run(Copy{.out = Tokens(a_.key), .x = keys}, stream_);
  Run(Copy{.out = Tokens(a_.value), .x = values}, stream_);
  Run(StoreKv{.pages = kv_[static_cast<std::size_t>(layer)],
              .k = Tokens(a_.key),
              .v = Tokens(a_.value),
              .places = places_},
      stream_);
}

void Decoder::Layers() {
  EmbedTokens();  // → hidden
  for (std::int64_t layer = 0; layer < model_.layers; ++layer) Layer(layer);
}

// Each rank looks up the rows it holds; the others bring zeros, so the sum is exact.
void Decoder::EmbedTokens() {
  const std::int64_t subtrees = a_.attention_partials.size(0) / memory_.limits.max_tokens;
  const TensorView partials = a_.attention_partials.Rows(0, subtrees * tokens_);
  Run(Zero{.out = partials}, stream_);
  Run(Embed{.out = partials.Rows(0, tokens_),
            .token_ids = a_.inputs.token_ids.Rows(0, tokens_),
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
                     .soft_cap = model_.attention_soft_cap,
                     .workspace = a_.attention_workspace},
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
  const TensorView topk_ids = a_.topk_ids.Rows(layer * memory_.limits.max_tokens, tokens_);
  const TensorView topk_weights = Tokens(a_.topk_weights);
  const TensorView workspace = a_.matmul_workspace;

  Run(Matmul{.out = logits, .x = normed, .weight = w.router, .workspace = workspace}, stream_);
  Run(RouteTopK{.topk_ids = topk_ids,
                .topk_weights = topk_weights,
                .logits = logits,
                .renormalize = model_.renormalize_router},
      stream_);

  const ExpertBatch batch = exchange_->Dispatch(normed, topk_ids, stream_);  // tokens to experts
  Run(GatedExperts{.out = batch.partials,
                   .x = batch.tokens,
                   .offsets = batch.offsets,
                   .gate = w.expert_gate,
                   .up = w.expert_up,
                   .down = w.expert_down,
                   .activation = model_.activation,
                   .hidden = a_.expert_hidden.Rows(0, batch.tokens.size(0)),
                   .workspace = workspace},
      stream_);
  exchange_->Combine(Tokens(a_.block_out), topk_ids, topk_weights, stream_);  // results come home
}

void Decoder::Logits(std::int64_t slice) {
  const std::int64_t slice_rows = memory_.limits.logit_rows;
  const std::int64_t rows =
      SliceRows(rows_.logits[static_cast<std::size_t>(mesh_.seat.data)], slice);
  if (rows == 0) return;
  const TensorView hidden = a_.logit_hidden.Rows(0, rows);
  Run(GatherRows{.out = hidden,
                 .x = Tokens(a_.hidden),
                 .index = a_.inputs.logit_index.Rows(slice * slice_rows, rows),
                 .count = a_.inputs.logit_counts.Rows(slice, 1)},
      stream_);
  Run(
      RmsNorm{
          .out = hidden, .x = hidden, .scale = weights_.final_norm, .epsilon = model_.norm_epsilon},
      stream_);
  const std::int64_t own = weights_.output.layout.columns.size();
  Run(Matmul{.out = a_.logit_shard.Rows(0, rows * own).Reshaped(Shape{rows, own}),
             .x = hidden,
             .weight = weights_.output,
             .multiplier = model_.logit_multiplier,
             .workspace = a_.matmul_workspace},
      stream_);
}

// Every rank sends its columns of the vocabulary to the leader, which puts them side by side.
void Decoder::GatherLogits(std::int64_t slice) {
  const int world = mesh_.world->size();
  if (world == 1) return;  // logit_shard has them all
  const MatrixLayout& own = weights_.output.layout;
  const auto rows_of_group = [&](int group) {
    return SliceRows(rows_.logits[static_cast<std::size_t>(group)], slice);
  };
  std::vector<std::int64_t> send(static_cast<std::size_t>(world), 0);
  std::vector<std::int64_t> receive(static_cast<std::size_t>(world), 0);
  std::vector<Range> columns;
  send[0] = rows_of_group(mesh_.seat.data) * own.columns.size();
  if (mesh_.leader()) {
    for (int rank = 0; rank < world; ++rank) {
      const Seat seat = SeatOf(mesh_.plan, rank);
      columns.push_back(OwnedVocabulary(own.n, seat.tensor, mesh_.plan.tensor));
      receive[static_cast<std::size_t>(rank)] = rows_of_group(seat.data) * columns.back().size();
    }
  }
  const TensorView none(a_.logit_shard.raw(), DType::kF32, Shape{0, 1}, stream_.device());
  mesh_.world->AllToAllRows(mesh_.leader() ? AsRows(a_.logit_arrivals) : none, receive,
                            AsRows(a_.logit_shard), send, stream_);
  if (!mesh_.leader()) return;

  std::int64_t arrived = 0;
  for (int rank = 0; rank < world; ++rank) {
    const int group = rank / mesh_.plan.tensor;
    const std::int64_t rows = rows_of_group(group);
    const Range part = columns[static_cast<std::size_t>(rank)];
    if (rows == 0 || part.empty()) continue;
    Run(Copy{.out = a_.logits.Rows(group * memory_.limits.logit_rows, rows)
                        .Columns(part.begin, part.size()),
             .x = a_.logit_arrivals.Rows(arrived, rows * part.size())
                      .Reshaped(Shape{rows, part.size()})},
        stream_);
    arrived += rows * part.size();
  }
}

void Decoder::HandOver(const StepPlan& plan, std::int64_t slice, const LogitsSink& sink) {
  if (!mesh_.leader()) return;
  const std::int64_t slice_rows = memory_.limits.logit_rows;
  std::int64_t first = slice * slice_rows;
  for (std::size_t group = 0; group < plan.groups.size(); ++group) {
    const auto wanted = static_cast<std::int64_t>(plan.groups[group].logit_rows.size());
    const std::int64_t rows = SliceRows(wanted, slice);
    if (rows > 0 && mesh_.world->size() == 1) {
      const std::int64_t n = model_.vocabulary;
      sink(first, a_.logit_shard.Rows(0, rows * n).Reshaped(Shape{rows, n}));
    } else if (rows > 0) {
      sink(first, a_.logits.Rows(static_cast<std::int64_t>(group) * slice_rows, rows));
    }
    first += wanted;
  }
}

/// Rows of slice `slice` of so many.
std::int64_t Decoder::SliceRows(std::int64_t logit_rows, std::int64_t slice) const {
  const std::int64_t most = memory_.limits.logit_rows;
  return std::clamp<std::int64_t>(logit_rows - slice * most, 0, most);
}

void Decoder::ReportRouting(std::int64_t tokens) {
  const std::int64_t entries = tokens * model_.top_k;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(model_.layers * entries));
  const TensorView host(reinterpret_cast<std::byte*>(ids.data()), DType::kI32,
                        Shape{model_.layers, entries});
  const Shape of_layers{model_.layers, memory_.limits.max_tokens * model_.top_k};
  Run(Copy{.out = host, .x = a_.topk_ids.Reshaped(of_layers).Columns(0, entries)}, stream_);
  Wait();
  for (std::int64_t layer = 0; layer < model_.layers; ++layer) {
    routing_observer_(layer, host.Rows(layer, 1).Reshaped(Shape{tokens, model_.top_k}));
  }
}

}  // namespace jubal

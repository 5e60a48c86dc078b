#include "runtime/model.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/check.h"

namespace jubal {

std::string_view NameOf(WeightRole role) {
  switch (role) {
    case WeightRole::kEmbedding:
      return "embedding";
    case WeightRole::kFinalNorm:
      return "final_norm";
    case WeightRole::kOutput:
      return "output";
    case WeightRole::kAttentionNorm:
      return "attention_norm";
    case WeightRole::kQuery:
      return "query";
    case WeightRole::kKey:
      return "key";
    case WeightRole::kValue:
      return "value";
    case WeightRole::kAttentionOut:
      return "attention_out";
    case WeightRole::kAttentionOutNorm:
      return "attention_out_norm";
    case WeightRole::kMoeNorm:
      return "moe_norm";
    case WeightRole::kRouter:
      return "router";
    case WeightRole::kExpertGate:
      return "expert_gate";
    case WeightRole::kExpertUp:
      return "expert_up";
    case WeightRole::kExpertDown:
      return "expert_down";
    case WeightRole::kMoeOutNorm:
      return "moe_out_norm";
  }
  CheckFailed(__FILE__, __LINE__, "unknown role");
}

std::string WeightSpec::Name() const {
  return layer < 0 ? std::string(NameOf(role)) : fmt::format("layer {} {}", layer, NameOf(role));
}

std::vector<WeightSpec> ListWeights(const ModelDescription& m) {
  using enum WeightRole;
  std::vector<WeightSpec> list;
  const auto add = [&](WeightRole role, std::int64_t layer, Sharding sharding, std::int64_t k,
                       std::int64_t n = 0, bool expert_stack = false) {
    list.push_back({role, layer, sharding, k, n, expert_stack});
  };
  const std::int64_t query_width = m.heads * m.head_dim;
  const std::int64_t kv_width = m.kv_heads * m.head_dim;

  add(kEmbedding, -1, Sharding::kByVocabulary, m.hidden, m.vocabulary);
  for (std::int64_t layer = 0; layer < m.layers; ++layer) {
    add(kAttentionNorm, layer, Sharding::kReplicated, m.hidden);
    add(kQuery, layer, Sharding::kByHead, m.hidden, query_width);
    add(kKey, layer, Sharding::kByKvHead, m.hidden, kv_width);
    add(kValue, layer, Sharding::kByKvHead, m.hidden, kv_width);
    add(kAttentionOut, layer, Sharding::kByHeadChunk, query_width, m.hidden);
    if (m.post_norms) add(kAttentionOutNorm, layer, Sharding::kReplicated, m.hidden);
    add(kMoeNorm, layer, Sharding::kReplicated, m.hidden);
    add(kRouter, layer, Sharding::kReplicated, m.hidden, m.experts);
    add(kExpertGate, layer, Sharding::kByExpertOutput, m.hidden, m.expert_hidden, true);
    add(kExpertUp, layer, Sharding::kByExpertOutput, m.hidden, m.expert_hidden, true);
    add(kExpertDown, layer, Sharding::kByExpertInput, m.expert_hidden, m.hidden, true);
    if (m.post_norms) add(kMoeOutNorm, layer, Sharding::kReplicated, m.hidden);
  }
  add(kFinalNorm, -1, Sharding::kReplicated, m.hidden);
  if (!m.tied_output) add(kOutput, -1, Sharding::kByVocabulary, m.hidden, m.vocabulary);
  return list;
}

Range OwnedHeads(const ModelDescription& model, int tensor_index, int tensor_size) {
  const Range columns =
      ColumnsOfChunks(model.heads * model.head_dim, OwnedChunks(tensor_index, tensor_size));
  if (columns.empty()) return {0, 0};
  return {columns.begin / model.head_dim, DivideUp(columns.end, model.head_dim)};
}

Range OwnedKvHeads(const ModelDescription& model, int tensor_index, int tensor_size) {
  const Range heads = OwnedHeads(model, tensor_index, tensor_size);
  if (heads.empty()) return {0, 0};
  const std::int64_t per_kv_head = model.heads / model.kv_heads;
  return {heads.begin / per_kv_head, (heads.end - 1) / per_kv_head + 1};
}

Range OwnedVocabulary(std::int64_t vocabulary, int tensor_index, int tensor_size) {
  const std::int64_t blocks = DivideUp(vocabulary, kBlockColumns);
  const Range owned = OwnedRange(blocks, tensor_index, tensor_size);
  return {std::min(owned.begin * kBlockColumns, vocabulary),
          std::min(owned.end * kBlockColumns, vocabulary)};
}

MatrixLayout LayoutOf(const WeightSpec& spec, const WeightFormat& format,
                      const ModelDescription& model, const ParallelPlan& plan, const Seat& seat) {
  CHECK(spec.n > 0);
  MatrixLayout layout{.type = format.type,
                      .split = Split::kByOutput,
                      .k = spec.k,
                      .n = spec.n,
                      .group_rows = format.group_rows,
                      .experts = {0, 1},
                      .chunks = {0, 1},
                      .columns = {0, spec.n}};
  const Range tensor_chunks = OwnedChunks(seat.tensor, plan.tensor);
  const Range expert_chunks = OwnedChunks(seat.expert_tensor, plan.expert_tensor);
  if (spec.expert_stack) {
    layout.experts = OwnedExperts(plan, static_cast<int>(model.experts), seat.expert);
  }
  switch (spec.sharding) {
    case Sharding::kReplicated:
      break;
    case Sharding::kByVocabulary:
      layout.columns = OwnedVocabulary(spec.n, seat.tensor, plan.tensor);
      break;
    case Sharding::kByHead: {
      const Range heads = OwnedHeads(model, seat.tensor, plan.tensor);
      layout.columns = {heads.begin * model.head_dim, heads.end * model.head_dim};
      break;
    }
    case Sharding::kByKvHead: {
      const Range heads = OwnedKvHeads(model, seat.tensor, plan.tensor);
      layout.columns = {heads.begin * model.head_dim, heads.end * model.head_dim};
      break;
    }
    case Sharding::kByHeadChunk:
      layout.split = Split::kByInput;
      layout.chunks = tensor_chunks;
      break;
    case Sharding::kByExpertOutput:
      layout.columns = ColumnsOfChunks(spec.n, expert_chunks);
      break;
    case Sharding::kByExpertInput:
      layout.split = Split::kByInput;
      layout.chunks = expert_chunks;
      break;
  }
  return layout;
}

MatrixLayout WholeLayoutOf(const WeightSpec& spec, const WeightFormat& format,
                           const ModelDescription& model) {
  return LayoutOf(spec, format, model, ParallelPlan(), Seat());
}

PackedMatrix& MatrixOf(Weights& weights, const WeightSpec& spec) {
  using enum WeightRole;
  if (spec.role == kEmbedding) return weights.embedding;
  if (spec.role == kOutput) return weights.output;
  LayerWeights& layer = weights.layers[static_cast<std::size_t>(spec.layer)];
  switch (spec.role) {
    case kQuery:
      return layer.query;
    case kKey:
      return layer.key;
    case kValue:
      return layer.value;
    case kAttentionOut:
      return layer.attention_out;
    case kRouter:
      return layer.router;
    case kExpertGate:
      return layer.expert_gate;
    case kExpertUp:
      return layer.expert_up;
    case kExpertDown:
      return layer.expert_down;
    default:
      CheckFailed(__FILE__, __LINE__, spec.Name() + " is not a matrix");
  }
}

ConstTensorView& VectorOf(Weights& weights, const WeightSpec& spec) {
  using enum WeightRole;
  if (spec.role == kFinalNorm) return weights.final_norm;
  LayerWeights& layer = weights.layers[static_cast<std::size_t>(spec.layer)];
  switch (spec.role) {
    case kAttentionNorm:
      return layer.attention_norm;
    case kAttentionOutNorm:
      return layer.attention_out_norm;
    case kMoeNorm:
      return layer.moe_norm;
    case kMoeOutNorm:
      return layer.moe_out_norm;
    default:
      CheckFailed(__FILE__, __LINE__, spec.Name() + " is not a vector");
  }
}

}  // namespace jubal

#include "parallel/homeward_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"
#include "kernels/combine_experts.h"
#include "kernels/padded_pairs.h"
#include "kernels/permute.h"
#include "kernels/run.h"
#include "kernels/sum_tree.h"
#include "parallel/row_transfer.h"

namespace jubal {

HomewardExchange::HomewardExchange(const Mesh& mesh, const ExchangeSizes& sizes, TensorView buffers)
    : mesh_(mesh),
      sizes_(sizes),
      buffers_(LayOut(mesh.plan, mesh.seat, sizes, buffers.raw())),
      local_experts_(OwnedExperts(mesh.plan, sizes.experts, mesh.seat.expert)),
      own_subtrees_(SubtreesOf(mesh.plan, mesh.seat.expert_tensor)),
      index_copy_(sizes.device, buffers_.index.shape().elements()),
      count_copy_(sizes.device, 1),
      offsets_copy_(sizes.device, buffers_.offsets.size(0)),
      home_offsets_copy_(sizes.device, buffers_.home_offsets.size(0)) {
  CHECK(buffers.device() == sizes.device);
  CHECK_GE(buffers.bytes(), buffers_.bytes);
  const auto world = static_cast<std::size_t>(mesh.plan.world());
  for (int x = 0; x < mesh.plan.expert_tensor; ++x) {
    for (const Subtree& subtree : MaximalSubtrees(OwnedChunks(x, mesh.plan.expert_tensor))) {
      tree_.push_back(subtree);
    }
  }
  tree_parts_.resize(tree_.size());
  tokens_of_group_.resize(static_cast<std::size_t>(mesh.plan.data));
  batch_rows_.resize(world * static_cast<std::size_t>(local_experts_.size()));
  next_rows_.resize(static_cast<std::size_t>(local_experts_.size()));
  rows_to_.resize(world);
  rows_from_.resize(world);
  tensor_rows_.resize(static_cast<std::size_t>(mesh.plan.tensor));
}

void HomewardExchange::BeginStep(std::span<const std::int64_t> tokens_of_group) {
  CHECK_EQ(tokens_of_group.size(), tokens_of_group_.size());
  for (const std::int64_t tokens : tokens_of_group) {
    CHECK(0 <= tokens && tokens <= sizes_.max_tokens);
  }
  std::copy(tokens_of_group.begin(), tokens_of_group.end(), tokens_of_group_.begin());
  const std::int64_t tokens = tokens_of_group[static_cast<std::size_t>(mesh_.seat.data)];
  everywhere_ = HomeIsEverywhere(mesh_.plan, sizes_, tokens);
  whole_ = everywhere_ && mesh_.plan.expert == 1;
  padded_ = sizes_.device == Device::kCuda && !whole_ &&
            std::ranges::max(tokens_of_group_) <= PaddedTokens(mesh_.plan, sizes_);
  step_rows_ =
      SumOf(tokens_of_group_) * std::min<std::int64_t>(sizes_.top_k, local_experts_.size());
  for (int t = 0; t < mesh_.plan.tensor; ++t) {
    tensor_rows_[static_cast<std::size_t>(t)] = OwnedRange(tokens, t, mesh_.plan.tensor).size();
  }
  home_tokens_ =
      everywhere_ ? Range{0, tokens} : OwnedRange(tokens, mesh_.seat.tensor, mesh_.plan.tensor);
}

void HomewardExchange::Combine(TensorView out, ConstTensorView topk_ids,
                               ConstTensorView topk_weights, Stream& stream) {
  const std::int64_t tokens = tokens_of_group_[static_cast<std::size_t>(mesh_.seat.data)];
  CHECK_EQ(out.size(0), tokens);
  const ParallelPlan& plan = mesh_.plan;
  const bool divided = plan.expert_tensor > 1;  // experts: what comes home is completed there
  ConstTensorView outputs = whole_    ? Partials()
                            : padded_ ? PaddedPartials(stream)
                                      : PackedPartials(stream);
  if (plan.world() > 1) {
    for (int rank = 0; rank < plan.world(); ++rank) {
      const Seat source = SeatOf(plan, rank);
      rows_from_[static_cast<std::size_t>(rank)] =
          SubtreesOf(plan, source.expert_tensor) * PairsFrom(source.expert);
    }
    const auto complete = [&](std::span<const ConstTensorView> returned) {
      CompleteOutputs(returned, stream);
    };
    if (everywhere_ && divided) {
      mesh_.world->VisitRows(buffers_.returned, outputs, rows_from_, complete, stream);
    } else if (everywhere_) {
      mesh_.world->AllGatherRows(buffers_.returned, outputs, rows_from_, stream);
    } else {
      mesh_.world->AllToAllRows(buffers_.returned, rows_from_, outputs, rows_to_, stream);
      if (divided) complete(ViewsOfRanks(buffers_.returned, rows_from_));
    }
    outputs = divided ? buffers_.outputs : buffers_.returned;
  }

  const std::int64_t home = home_tokens_.size();
  const TensorView home_out = out.Rows(home_tokens_.begin, home);
  const ConstTensorView home_ids = topk_ids.Rows(home_tokens_.begin, home);
  const TensorView row_of = (whole_ ? buffers_.row_of : buffers_.home_row_of).Rows(0, home);
  if (padded_) {
    Run(PlacePairs{.row_of = row_of,
                   .topk_ids = home_ids,
                   .experts = sizes_.experts,
                   .groups = plan.expert,
                   .slots = SlotsOf(plan, sizes_)},
        stream);
  }
  Run(CombineExperts{.out = home_out,
                     .y = outputs,
                     .row_of = row_of,
                     .topk_ids = home_ids,
                     .topk_weights = topk_weights.Rows(home_tokens_.begin, home)},
      stream);
  if (!everywhere_) mesh_.tensor->AllGatherRows(out, home_out, tensor_rows_, stream);
}

bool HomewardExchange::capturable() const {
  return counted_by_sizes() && mesh_.world->capturable() && mesh_.tensor->capturable() &&
         mesh_.data->capturable();
}

ExpertBatch HomewardExchange::DispatchReplicated(ConstTensorView x, ConstTensorView topk_ids,
                                                 Stream& stream) {
  const std::int64_t all_tokens = SumOf(tokens_of_group_);
  if (mesh_.plan.data > 1) {
    mesh_.data->AllGatherRows(buffers_.all_x, x, tokens_of_group_, stream);
    mesh_.data->AllGatherRows(buffers_.all_ids, topk_ids, tokens_of_group_, stream);
    x = buffers_.all_x.Rows(0, all_tokens);
    topk_ids = buffers_.all_ids.Rows(0, all_tokens);
  }
  all_ids_ = topk_ids;
  const ExpertBatch batch = Batch();
  Run(GroupByExpert{.offsets = buffers_.offsets,
                    .row_of = buffers_.row_of.Rows(0, all_tokens),
                    .token_of = buffers_.token_of.Rows(0, all_tokens * sizes_.top_k),
                    .topk_ids = topk_ids,
                    .experts = local_experts_},
      stream);
  Run(GatherRows{.out = buffers_.tokens.Rows(0, step_rows_),
                 .x = x,
                 .index = buffers_.token_of,
                 .count = batch.rows},
      stream);
  return batch;
}

void HomewardExchange::GroupHomePairs(ConstTensorView topk_ids, Stream& stream) {
  const std::int64_t home = home_tokens_.size();
  Run(GroupByExpert{.offsets = buffers_.home_offsets,
                    .row_of = buffers_.home_row_of.Rows(0, home),
                    .token_of = buffers_.home_token_of.Rows(0, home * sizes_.top_k),
                    .topk_ids = topk_ids.Rows(home_tokens_.begin, home),
                    .experts = {0, sizes_.experts}},
      stream);
}

std::int64_t HomewardExchange::HomePairsOf(int expert_group) const {
  const std::int32_t* offsets = home_offsets_on_host_.data<std::int32_t>();
  const Range experts = OwnedExperts(mesh_.plan, sizes_.experts, expert_group);
  return offsets[experts.end] - offsets[experts.begin];
}

/// Rows of each subtree that a rank of the group brings this one.
std::int64_t HomewardExchange::PairsFrom(int expert_group) const {
  return counted_by_sizes() ? home_tokens_.size() * SlotsOf(mesh_.plan, sizes_)
                            : HomePairsOf(expert_group);
}

ExpertBatch HomewardExchange::Batch() const {
  return {.tokens = buffers_.tokens.Rows(0, step_rows_),
          .offsets = buffers_.offsets,
          .rows = buffers_.offsets.Rows(local_experts_.size(), 1),
          .partials = TensorView(buffers_.partials.raw(), DType::kF32,
                                 {own_subtrees_, step_rows_, sizes_.hidden}, sizes_.device)};
}

Range HomewardExchange::TokensOfHome(std::int64_t h) const {
  if (everywhere_) return {0, SumOf(tokens_of_group_)};
  const Seat home = SeatOf(mesh_.plan, static_cast<int>(h));
  const auto group = static_cast<std::size_t>(home.data);
  const std::int64_t begin = SumOf(std::span(tokens_of_group_).first(group));
  const Range owned = OwnedRange(tokens_of_group_[group], home.tensor, mesh_.plan.tensor);
  return {begin + owned.begin, begin + owned.end};
}

/// The batch's, one subtree after the other.
ConstTensorView HomewardExchange::Partials() const {
  return Batch().partials.Reshaped({own_subtrees_ * step_rows_, sizes_.hidden});
}

/// The partials in the order they travel: home, subtree, expert, token. The receiver then finds
/// each subtree's rows dense and, over all sources, ordered by expert, as GroupHomePairs has them.
ConstTensorView HomewardExchange::PackedPartials(Stream& stream) {
  const std::int64_t experts = local_experts_.size();
  const std::int32_t* offsets = offsets_on_host_.data<std::int32_t>();
  if (everywhere_) {
    for (std::int64_t e = 0; e < experts; ++e) batch_rows(0, e) = offsets[e + 1] - offsets[e];
  }
  if (homes() > 1) {
    for (std::int64_t h = 0; h < homes(); ++h) {
      std::int64_t rows = 0;
      for (std::int64_t e = 0; e < experts; ++e) rows += batch_rows(h, e);
      rows_to_[static_cast<std::size_t>(h)] = own_subtrees_ * rows;
    }
  }
  const bool in_order = own_subtrees_ == 1 && (homes() == 1 || experts == 1);
  if (in_order) return Partials();

  std::int32_t* index = index_copy_.For(buffers_.index).data<std::int32_t>();
  std::int32_t packed = 0;
  std::copy_n(offsets, experts, next_rows_.begin());
  for (std::int64_t h = 0; h < homes(); ++h) {
    for (std::int64_t s = 0; s < own_subtrees_; ++s) {
      for (std::int64_t e = 0; e < experts; ++e) {
        const std::int64_t begin = s * step_rows_ + next_rows_[static_cast<std::size_t>(e)];
        std::iota(index + packed, index + packed + batch_rows(h, e),
                  static_cast<std::int32_t>(begin));
        packed += batch_rows(h, e);
      }
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      next_rows_[static_cast<std::size_t>(e)] += batch_rows(h, e);
    }
  }
  *count_copy_.For(buffers_.count).data<std::int32_t>() = packed;
  count_copy_.Write(buffers_.count, stream);
  index_copy_.Write(buffers_.index.Rows(0, packed), stream);
  Run(GatherRows{.out = buffers_.packed.Rows(0, own_subtrees_ * step_rows_),
                 .x = Partials(),
                 .index = buffers_.index,
                 .count = buffers_.count},
      stream);
  return buffers_.packed;
}

/// The partials in the order they travel in a padded step: home, subtree, token, slot.
ConstTensorView HomewardExchange::PaddedPartials(Stream& stream) {
  const std::int64_t slots = SlotsOf(mesh_.plan, sizes_);
  std::int64_t packed = 0;
  const auto pack = [&](std::int64_t subtree, Range tokens) {
    Run(PackPairs{.out = buffers_.packed.Rows(packed, tokens.size() * slots),
                  .x = Partials().Rows(subtree * step_rows_, step_rows_),
                  .row_of = buffers_.row_of.Rows(tokens.begin, tokens.size()),
                  .slots = slots},
        stream);
    packed += tokens.size() * slots;
  };
  for (std::int64_t h = 0; h < homes(); ++h) {
    const Range tokens = TokensOfHome(h);
    rows_to_[static_cast<std::size_t>(h)] = own_subtrees_ * tokens.size() * slots;
    if (own_subtrees_ == 1) continue;
    for (std::int64_t s = 0; s < own_subtrees_; ++s) pack(s, tokens);
  }
  // The homes' tokens follow each other: of one subtree, all rows can be packed at once.
  if (own_subtrees_ == 1) pack(0, {0, SumOf(tokens_of_group_)});
  return buffers_.packed;
}

/// outputs ← the home pairs' outputs, ordered as GroupHomePairs has them, from what each rank
/// brings.
void HomewardExchange::CompleteOutputs(std::span<const ConstTensorView> returned, Stream& stream) {
  std::int64_t output = 0;
  std::size_t rank = 0;
  for (int group = 0; group < mesh_.plan.expert; ++group) {
    const std::int64_t pairs = PairsFrom(group);
    auto part = tree_parts_.begin();
    for (int x = 0; x < mesh_.plan.expert_tensor; ++x, ++rank) {
      for (std::int64_t s = 0; s < SubtreesOf(mesh_.plan, x); ++s) {
        *part++ = returned[rank].Rows(s * pairs, pairs);
      }
    }
    Run(SumTree{.out = buffers_.outputs.Rows(output, pairs),
                .partials = tree_parts_,
                .subtrees = tree_},
        stream);
    output += pairs;
  }
}

}  // namespace jubal

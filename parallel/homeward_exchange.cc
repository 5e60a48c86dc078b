#include "parallel/homeward_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"
#include "kernels/combine_experts.h"
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
      own_subtrees_(SubtreesOf(mesh.plan, mesh.seat.expert_tensor)) {
  // The routing is read and turned into row counts by the host.
  CHECK(buffers.device() == Device::kCpu);
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
  ConstTensorView outputs = PackedPartials(stream);
  if (plan.world() > 1) {
    for (int rank = 0; rank < plan.world(); ++rank) {
      const Seat source = SeatOf(plan, rank);
      rows_from_[static_cast<std::size_t>(rank)] =
          SubtreesOf(plan, source.expert_tensor) * HomePairsOf(source.expert);
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
  Run(CombineExperts{.out = home_out,
                     .y = outputs,
                     .row_of = buffers_.home_row_of.Rows(0, home),
                     .topk_ids = topk_ids.Rows(home_tokens_.begin, home),
                     .topk_weights = topk_weights.Rows(home_tokens_.begin, home)},
      stream);
  if (!everywhere_) mesh_.tensor->AllGatherRows(out, home_out, tensor_rows_, stream);
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
  const std::int32_t* offsets = buffers_.home_offsets.data<std::int32_t>();
  const Range experts = OwnedExperts(mesh_.plan, sizes_.experts, expert_group);
  return offsets[experts.end] - offsets[experts.begin];
}

ExpertBatch HomewardExchange::Batch() const {
  return {.tokens = buffers_.tokens,
          .offsets = buffers_.offsets,
          .rows = buffers_.offsets.Rows(local_experts_.size(), 1),
          .partials = buffers_.partials};
}

/// The partials in the order they travel: home, subtree, expert, token. The receiver then finds
/// each subtree's rows dense and, over all sources, ordered by expert, as GroupHomePairs has them.
ConstTensorView HomewardExchange::PackedPartials(Stream& stream) {
  const std::int64_t experts = local_experts_.size();
  const std::int64_t max_rows = buffers_.tokens.size(0);
  const ConstTensorView partials =
      buffers_.partials.Reshaped({own_subtrees_ * max_rows, sizes_.hidden});
  const std::int32_t* offsets = buffers_.offsets.data<std::int32_t>();
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
  if (in_order) return partials;

  std::int32_t* index = buffers_.index.data<std::int32_t>();
  std::int32_t packed = 0;
  std::copy_n(offsets, experts, next_rows_.begin());
  for (std::int64_t h = 0; h < homes(); ++h) {
    for (std::int64_t s = 0; s < own_subtrees_; ++s) {
      for (std::int64_t e = 0; e < experts; ++e) {
        const std::int64_t begin = s * max_rows + next_rows_[static_cast<std::size_t>(e)];
        std::iota(index + packed, index + packed + batch_rows(h, e),
                  static_cast<std::int32_t>(begin));
        packed += batch_rows(h, e);
      }
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      next_rows_[static_cast<std::size_t>(e)] += batch_rows(h, e);
    }
  }
  *buffers_.count.data<std::int32_t>() = packed;
  Run(
      GatherRows{
          .out = buffers_.packed, .x = partials, .index = buffers_.index, .count = buffers_.count},
      stream);
  return buffers_.packed;
}

/// outputs ← the home pairs' outputs, ordered as GroupHomePairs has them, from what each rank
/// brings.
void HomewardExchange::CompleteOutputs(std::span<const ConstTensorView> returned, Stream& stream) {
  std::int64_t output = 0;
  std::size_t rank = 0;
  for (int group = 0; group < mesh_.plan.expert; ++group) {
    const std::int64_t pairs = HomePairsOf(group);
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

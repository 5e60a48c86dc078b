#include "parallel/all_to_all_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/permute.h"
#include "kernels/run.h"

namespace jubal {
namespace {

TensorView ColumnOf(std::vector<std::int32_t>& counts) {
  return TensorView(reinterpret_cast<std::byte*>(counts.data()), DType::kI32,
                    {static_cast<std::int64_t>(counts.size()), 1});
}

}  // namespace

AllToAllExchange::AllToAllExchange(const Mesh& mesh, const ExchangeSizes& sizes, TensorView buffers)
    : HomewardExchange(mesh, sizes, buffers) {
  const auto world = static_cast<std::size_t>(mesh.plan.world());
  counts_.resize(static_cast<std::size_t>(mesh.plan.expert_tensor * sizes.experts));
  count_rows_.resize(world);
  local_count_rows_.resize(world, local_experts_.size());
  next_arrival_.resize(world);
  send_rows_.resize(world);
  recv_rows_.resize(world);
  for (int rank = 0; rank < mesh.plan.world(); ++rank) {
    const int group = SeatOf(mesh.plan, rank).expert;
    count_rows_[static_cast<std::size_t>(rank)] =
        OwnedExperts(mesh.plan, sizes.experts, group).size();
  }
}

ExpertBatch AllToAllExchange::Dispatch(ConstTensorView x, ConstTensorView topk_ids,
                                       Stream& stream) {
  if (padded_) return DispatchReplicated(x, topk_ids, stream);
  GroupHomePairs(topk_ids, stream);
  home_offsets_on_host_ = home_offsets_copy_.Read(buffers_.home_offsets, stream);
  mesh_.world->Wait(stream);
  ExchangeCounts();
  SendRows(x.Rows(home_tokens_.begin, home_tokens_.size()), stream);
  OrderByExpert(stream);
  return Batch();
}

/// batch_rows ← how many rows each home has for each of this rank's experts.
void AllToAllExchange::ExchangeCounts() {
  const std::int32_t* home_offsets = home_offsets_on_host_.data<std::int32_t>();
  auto count = counts_.begin();
  for (int rank = 0; rank < mesh_.plan.world(); ++rank) {
    const Range experts = OwnedExperts(mesh_.plan, sizes_.experts, SeatOf(mesh_.plan, rank).expert);
    for (std::int64_t e = experts.begin; e < experts.end; ++e) {
      *count++ = home_offsets[e + 1] - home_offsets[e];
    }
  }
  Stream on_host;
  mesh_.world->AllToAllRows(ColumnOf(batch_rows_), local_count_rows_, ColumnOf(counts_),
                            count_rows_, on_host);
}

/// The ranks that share an expert get the same rows, one round for each of them, so that the rows
/// are packed once.
void AllToAllExchange::SendRows(ConstTensorView home_x, Stream& stream) {
  const ParallelPlan& plan = mesh_.plan;
  Run(GatherRows{.out = buffers_.outgoing,
                 .x = home_x,
                 .index = buffers_.home_token_of,
                 .count = buffers_.home_offsets.Rows(sizes_.experts, 1)},
      stream);
  for (int round = 0; round < plan.expert_tensor; ++round) {
    const bool receiving = round == mesh_.seat.expert_tensor;
    for (int rank = 0; rank < plan.world(); ++rank) {
      const Seat peer = SeatOf(plan, rank);
      const auto r = static_cast<std::size_t>(rank);
      send_rows_[r] = peer.expert_tensor == round ? HomePairsOf(peer.expert) : 0;
      recv_rows_[r] = 0;
      for (std::int64_t e = 0; receiving && e < local_experts_.size(); ++e) {
        recv_rows_[r] += batch_rows(rank, e);
      }
    }
    mesh_.world->AllToAllRows(buffers_.incoming, recv_rows_, buffers_.outgoing, send_rows_, stream);
  }
}

/// From the order of arrival (home, expert, token) to the batch's (expert, home, token).
void AllToAllExchange::OrderByExpert(Stream& stream) {
  std::int32_t next = 0;
  for (std::int64_t h = 0; h < homes(); ++h) {
    next_arrival_[static_cast<std::size_t>(h)] = next;
    for (std::int64_t e = 0; e < local_experts_.size(); ++e) next += batch_rows(h, e);
  }
  const TensorView offsets_on_host = offsets_copy_.For(buffers_.offsets);
  std::int32_t* offsets = offsets_on_host.data<std::int32_t>();
  std::int32_t* index = index_copy_.For(buffers_.index).data<std::int32_t>();
  std::int32_t row = 0;
  for (std::int64_t e = 0; e < local_experts_.size(); ++e) {
    offsets[e] = row;
    for (std::int64_t h = 0; h < homes(); ++h) {
      const std::int32_t rows = batch_rows(h, e);
      std::int32_t& arrival = next_arrival_[static_cast<std::size_t>(h)];
      std::iota(index + row, index + row + rows, arrival);
      arrival += rows;
      row += rows;
    }
  }
  offsets[local_experts_.size()] = row;
  offsets_copy_.Write(buffers_.offsets, stream);
  offsets_on_host_ = offsets_on_host;
  if (buffers_.incoming.raw() == buffers_.tokens.raw()) return;
  index_copy_.Write(buffers_.index.Rows(0, row), stream);
  Run(GatherRows{.out = buffers_.tokens.Rows(0, step_rows_),
                 .x = buffers_.incoming,
                 .index = buffers_.index,
                 .count = Batch().rows},
      stream);
}

}  // namespace jubal

#include "parallel/replicated_exchange.h"

#include <algorithm>

#include "kernels/permute.h"
#include "kernels/run.h"
#include "parallel/row_transfer.h"

namespace jubal {

ExpertBatch ReplicatedExchange::Dispatch(ConstTensorView x, ConstTensorView topk_ids,
                                         Stream& stream) {
  GroupHomePairs(topk_ids, stream);
  const std::int64_t all_tokens = SumOf(tokens_of_group_);
  if (mesh_.plan.data > 1) {
    mesh_.data->AllGatherRows(buffers_.all_x, x, tokens_of_group_, stream);
    mesh_.data->AllGatherRows(buffers_.all_ids, topk_ids, tokens_of_group_, stream);
    x = buffers_.all_x.Rows(0, all_tokens);
    topk_ids = buffers_.all_ids.Rows(0, all_tokens);
  }
  const ExpertBatch batch = Batch();
  Run(GroupByExpert{.offsets = buffers_.offsets,
                    .row_of = buffers_.row_of.Rows(0, all_tokens),
                    .token_of = buffers_.token_of.Rows(0, all_tokens * sizes_.top_k),
                    .topk_ids = topk_ids,
                    .experts = local_experts_},
      stream);
  Run(GatherRows{.out = buffers_.tokens, .x = x, .index = buffers_.token_of, .count = batch.rows},
      stream);
  if (!everywhere_) CountBatchRows(topk_ids);
  return batch;
}

void ReplicatedExchange::CountBatchRows(ConstTensorView all_ids) {
  std::fill(batch_rows_.begin(), batch_rows_.end(), 0);
  std::int64_t group_begin = 0;
  for (int rank = 0; rank < mesh_.plan.world(); ++rank) {
    const Seat home = SeatOf(mesh_.plan, rank);
    const std::int64_t tokens = tokens_of_group_[static_cast<std::size_t>(home.data)];
    const Range owned = OwnedRange(tokens, home.tensor, mesh_.plan.tensor);
    for (std::int64_t t = group_begin + owned.begin; t < group_begin + owned.end; ++t) {
      const std::int32_t* ids = all_ids.row<std::int32_t>(t);
      for (int j = 0; j < sizes_.top_k; ++j) {
        if (ids[j] >= local_experts_.begin && ids[j] < local_experts_.end) {
          ++batch_rows(rank, ids[j] - local_experts_.begin);
        }
      }
    }
    if (home.tensor == mesh_.plan.tensor - 1) group_begin += tokens;
  }
}

}  // namespace jubal

#include "parallel/replicated_exchange.h"

#include <algorithm>

namespace jubal {

ReplicatedExchange::ReplicatedExchange(const Mesh& mesh, const ExchangeSizes& sizes,
                                       TensorView buffers)
    : HomewardExchange(mesh, sizes, buffers),
      ids_copy_(sizes.device, buffers_.row_of.shape().elements()) {}

ExpertBatch ReplicatedExchange::Dispatch(ConstTensorView x, ConstTensorView topk_ids,
                                         Stream& stream) {
  if (counted_by_sizes()) return DispatchReplicated(x, topk_ids, stream);
  GroupHomePairs(topk_ids, stream);
  const ExpertBatch batch = DispatchReplicated(x, topk_ids, stream);
  home_offsets_on_host_ = home_offsets_copy_.Read(buffers_.home_offsets, stream);
  offsets_on_host_ = offsets_copy_.Read(buffers_.offsets, stream);
  const ConstTensorView all_ids = ids_copy_.Read(all_ids_, stream);
  mesh_.world->Wait(stream);
  if (!everywhere_) CountBatchRows(all_ids);
  return batch;
}

void ReplicatedExchange::CountBatchRows(ConstTensorView all_ids) {
  std::fill(batch_rows_.begin(), batch_rows_.end(), 0);
  for (std::int64_t home = 0; home < homes(); ++home) {
    const Range tokens = TokensOfHome(home);
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      const std::int32_t* ids = all_ids.row<std::int32_t>(t);
      for (int j = 0; j < sizes_.top_k; ++j) {
        if (ids[j] >= local_experts_.begin && ids[j] < local_experts_.end) {
          ++batch_rows(home, ids[j] - local_experts_.begin);
        }
      }
    }
  }
}

}  // namespace jubal

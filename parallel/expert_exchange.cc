#include "parallel/expert_exchange.h"

#include <algorithm>

#include "parallel/all_to_all_exchange.h"
#include "parallel/exchange_buffers.h"
#include "parallel/replicated_exchange.h"

namespace jubal {

std::int64_t ExpertExchangeBytes(const ParallelPlan& plan, const Seat& seat,
                                 const ExchangeSizes& sizes) {
  return LayOut(plan, seat, sizes, nullptr).bytes;
}

std::int64_t MaxExpertRows(const ParallelPlan& plan, const Seat& seat, const ExchangeSizes& sizes) {
  // A token's choices differ, so it meets each local expert at most once.
  const std::int64_t local_experts = OwnedExperts(plan, sizes.experts, seat.expert).size();
  return plan.data * sizes.max_tokens * std::min<std::int64_t>(sizes.top_k, local_experts);
}

std::unique_ptr<ExpertExchange> MakeExpertExchange(const Mesh& mesh, const ExchangeSizes& sizes,
                                                   TensorView buffers) {
  // A single rank has nobody to send to, whatever was asked for.
  if (mesh.plan.exchange == Exchange::kAllToAll && mesh.plan.world() > 1) {
    return std::make_unique<AllToAllExchange>(mesh, sizes, buffers);
  }
  return std::make_unique<ReplicatedExchange>(mesh, sizes, buffers);
}

}  // namespace jubal

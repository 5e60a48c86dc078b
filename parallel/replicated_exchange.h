#ifndef JUBAL_PARALLEL_REPLICATED_EXCHANGE_H_
#define JUBAL_PARALLEL_REPLICATED_EXCHANGE_H_

#include "parallel/homeward_exchange.h"

namespace jubal {

/// Every rank sees all tokens of all data groups and takes the rows of its experts. Who has how
/// many rows then follows from the routing, which all know: no counts are exchanged.
class ReplicatedExchange final : public HomewardExchange {
 public:
  ReplicatedExchange(const Mesh& mesh, const ExchangeSizes& sizes, TensorView buffers);

  ExpertBatch Dispatch(ConstTensorView x, ConstTensorView topk_ids, Stream& stream) override;

 private:
  void CountBatchRows(ConstTensorView all_ids);

  HostInts ids_copy_;
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_REPLICATED_EXCHANGE_H_

#ifndef JUBAL_PARALLEL_ALL_TO_ALL_EXCHANGE_H_
#define JUBAL_PARALLEL_ALL_TO_ALL_EXCHANGE_H_

#include <cstdint>
#include <vector>

#include "parallel/homeward_exchange.h"

namespace jubal {

/// A token's home sends its row to the ranks of each expert group that it chose. How many rows come
/// from where only their sender knows, so counts travel first.
class AllToAllExchange final : public HomewardExchange {
 public:
  AllToAllExchange(const Mesh& mesh, const ExchangeSizes& sizes, TensorView buffers);

  ExpertBatch Dispatch(ConstTensorView x, ConstTensorView topk_ids, Stream& stream) override;

 private:
  void ExchangeCounts();
  void SendRows(ConstTensorView home_x, Stream& stream);
  void OrderByExpert(Stream& stream);

  // All by world rank.
  std::vector<std::int32_t> counts_;            // home pairs of each of that rank's experts
  std::vector<std::int64_t> count_rows_;        // experts of that rank: counts sent to it
  std::vector<std::int64_t> local_count_rows_;  // experts of this rank: counts received from it
  std::vector<std::int64_t> send_rows_;
  std::vector<std::int64_t> recv_rows_;
  std::vector<std::int32_t> next_arrival_;  // its first row not yet put in order
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_ALL_TO_ALL_EXCHANGE_H_

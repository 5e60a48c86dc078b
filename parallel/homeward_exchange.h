#ifndef JUBAL_PARALLEL_HOMEWARD_EXCHANGE_H_
#define JUBAL_PARALLEL_HOMEWARD_EXCHANGE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/exchange_buffers.h"
#include "parallel/expert_exchange.h"
#include "parallel/host_ints.h"

namespace jubal {

/// What both forms share: the batch in the same order (expert, then data group, then token), and
/// the way home. The ranks of an expert group send their partials of each pair to the token's home
/// (see ExchangeBuffers); home completes each pair's tree, adds up the token's weighted outputs and
/// shares the result with its tensor group.
///
/// How many rows go where, the host knows in three ways:
///   - every pair goes from each rank to every rank: the batch travels as it is;
///   - the step is padded: in slots, which the home finds by the routing;
///   - else it looks at the routing's counts.
class HomewardExchange : public ExpertExchange {
 public:
  HomewardExchange(const Mesh& mesh, const ExchangeSizes& sizes, TensorView buffers);

  void BeginStep(std::span<const std::int64_t> tokens_of_group) final;
  void Combine(TensorView out, ConstTensorView topk_ids, ConstTensorView topk_weights,
               Stream& stream) final;
  std::int64_t max_rows() const final { return buffers_.tokens.size(0); }
  bool capturable() const final;

 protected:
  /// Dispatch where all ranks see all tokens of all data groups and take the rows of their experts.
  ExpertBatch DispatchReplicated(ConstTensorView x, ConstTensorView topk_ids, Stream& stream);
  /// Orders the home tokens' pairs by expert, then token.
  void GroupHomePairs(ConstTensorView topk_ids, Stream& stream);
  std::int64_t HomePairsOf(int expert_group) const;
  ExpertBatch Batch() const;
  /// Home h's tokens, among those of all data groups.
  Range TokensOfHome(std::int64_t h) const;

  /// Rows of local expert e in the batch that belong to home h of the step.
  std::int32_t& batch_rows(std::int64_t h, std::int64_t e) {
    return batch_rows_[static_cast<std::size_t>(h * local_experts_.size() + e)];
  }
  /// Homes that this rank tells apart: all ranks, or one when home is everywhere.
  std::int64_t homes() const { return everywhere_ ? 1 : mesh_.plan.world(); }
  /// Whether no row count depends on the routing, and none is needed.
  bool counted_by_sizes() const { return whole_ || padded_; }

  const Mesh& mesh_;
  const ExchangeSizes sizes_;
  const ExchangeBuffers buffers_;
  const Range local_experts_;  // global ids
  const std::int64_t own_subtrees_;

  std::vector<std::int64_t> tokens_of_group_;  // [data]
  std::int64_t step_rows_ = 0;                 // most rows of the batch in this step
  bool everywhere_ = false;                    // whether each rank is home to all tokens
  bool whole_ = false;                    // whether, besides, it brings a partial of every pair
  bool padded_ = false;                   // see ExchangeBuffers
  Range home_tokens_;                     // among the data group's
  std::vector<std::int32_t> batch_rows_;  // [homes, local experts]; see batch_rows
  ConstTensorView all_ids_;               // [all tokens, top_k] i32; where replicated

  // What the host sees, where it has to: copies, and the batch's and home pairs' offsets.
  HostInts index_copy_;
  HostInts count_copy_;
  HostInts offsets_copy_;
  HostInts home_offsets_copy_;
  ConstTensorView offsets_on_host_;
  ConstTensorView home_offsets_on_host_;

 private:
  ConstTensorView Partials() const;
  ConstTensorView PackedPartials(Stream& stream);
  ConstTensorView PaddedPartials(Stream& stream);
  std::int64_t PairsFrom(int expert_group) const;
  void CompleteOutputs(std::span<const ConstTensorView> returned, Stream& stream);

  std::vector<Subtree> tree_;                // the tiling by the ranks that share an expert
  std::vector<ConstTensorView> tree_parts_;  // [subtrees]
  std::vector<std::int32_t> next_rows_;      // [local experts]: first row not yet packed
  std::vector<std::int64_t> rows_to_;        // [world]
  std::vector<std::int64_t> rows_from_;      // [world]
  std::vector<std::int64_t> tensor_rows_;    // [tensor]: home tokens of the tensor group's ranks
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_HOMEWARD_EXCHANGE_H_

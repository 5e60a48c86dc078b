#ifndef JUBAL_PARALLEL_EXPERT_EXCHANGE_H_
#define JUBAL_PARALLEL_EXPERT_EXCHANGE_H_

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "parallel/mesh.h"

namespace jubal {

/// Sizes that fix an exchange's buffers.
struct ExchangeSizes {
  std::int64_t hidden = 0;
  int experts = 0;
  int top_k = 0;
  std::int64_t max_tokens = 0;   // of one data group in one step
  Device device = Device::kCpu;  // where all tensors lie
  /// On a GPU, in steps in which this much comes home to a rank at most, each expert group sends as
  /// many rows as it may have: padding costs less than showing the host how many there are.
  std::int64_t padded_bytes = std::int64_t{16} << 20;
};

/// What one rank computes in a mixture-of-experts layer: rows grouped by local expert. Views of the
/// exchange's buffers, valid until its next Dispatch.
struct ExpertBatch {
  ConstTensorView tokens;   // [most rows of the step, hidden] f32; in use: the last of offsets
  ConstTensorView offsets;  // [local experts + 1] i32, on the device
  ConstTensorView rows;     // [1] i32: the last of offsets
  TensorView partials;      // [own subtrees, as tokens, hidden] f32: for the down product's result
};

/// Brings tokens to the ranks that hold their experts, and the results home.
///
/// Every rank of the world takes part in every call, also with no tokens of its own. Both forms
/// give the same bits: an expert's output is completed (the tree over its 8 chunks) before it is
/// weighted, and a token's weighted outputs are added in ascending order of expert id.
///
/// On a GPU's stream, Dispatch and Combine enqueue and return, but for the steps in which the host
/// has to see how many rows go where: in these, Dispatch waits for the stream.
class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;

  /// Tells how many tokens each data group has in the coming step; every rank says the same.
  virtual void BeginStep(std::span<const std::int64_t> tokens_of_group) = 0;

  /// x: [tokens, hidden] f32, topk_ids: [tokens, top_k] i32, the data group's tokens, equal on all
  /// ranks of its tensor group.
  virtual ExpertBatch Dispatch(ConstTensorView x, ConstTensorView topk_ids, Stream& stream) = 0;

  /// out ← Σ_j topk_weights[t, j] · (output of expert topk_ids[t, j]) for each token of the data
  /// group, equal on all ranks of its tensor group. The batch's partials must be filled.
  /// out: [tokens, hidden] f32, topk_weights: [tokens, top_k] f32; topk_ids as dispatched.
  virtual void Combine(TensorView out, ConstTensorView topk_ids, ConstTensorView topk_weights,
                       Stream& stream) = 0;

  /// Most rows that the batch of this rank can have.
  virtual std::int64_t max_rows() const = 0;

  /// Whether Dispatch and Combine of a step of these sizes can be recorded in a GPU's graph, to be
  /// launched again with other tokens and another routing.
  virtual bool capturable() const = 0;
};

/// Bytes of buffers that MakeExpertExchange needs on the rank in that seat.
std::int64_t ExpertExchangeBytes(const ParallelPlan& plan, const Seat& seat,
                                 const ExchangeSizes& sizes);

/// The most rows of an ExpertBatch in that seat.
std::int64_t MaxExpertRows(const ParallelPlan& plan, const Seat& seat, const ExchangeSizes& sizes);

/// The form that mesh.plan asks for. `buffers`: [≥ ExpertExchangeBytes] u8, 64-byte aligned, and
/// `mesh` must outlive the exchange.
std::unique_ptr<ExpertExchange> MakeExpertExchange(const Mesh& mesh, const ExchangeSizes& sizes,
                                                   TensorView buffers);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_EXPERT_EXCHANGE_H_

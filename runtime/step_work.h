#ifndef JUBAL_RUNTIME_STEP_WORK_H_
#define JUBAL_RUNTIME_STEP_WORK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/paged_attention.h"
#include "parallel/plan.h"
#include "runtime/model_source.h"
#include "runtime/step_plan.h"

namespace jubal {

/// What a step asks of memory and arithmetic at least, in numbers: what measurements are divided
/// by.
class StepWork {
 public:
  /// For the rank in that seat.
  StepWork(const ModelSource& source, const ParallelPlan& plan, const Seat& seat, KvType kv_type);

  /// Bytes that this rank must read or write: every matrix that its tokens meet once, packed, with
  /// its scales (the router, too, which every rank holds); of the embedding the tokens' rows; of
  /// the experts those that any token of the step meets (`touched`: [layers · experts], not 0);
  /// keys and values of each sequence up to its last token, and those of the new tokens.
  /// Activations and messages do not count.
  std::int64_t Bytes(const StepPlan& step, std::span<const std::uint8_t> touched) const;

  /// Operations of all ranks together: two for each weight of each matrix that a token is
  /// multiplied with. Tokens meet top_k experts, and the output matrix only where logits are
  /// wanted. Attention's products with keys and values do not count.
  std::int64_t Operations(const StepPlan& step) const;

 private:
  int data_group_ = 0;
  std::int64_t experts_ = 0;  // of the model
  Range own_experts_;
  Range own_vocabulary_;
  std::int64_t token_bytes_ = 0;              // one row of the embedding
  std::int64_t dense_bytes_ = 0;              // the layers' matrices and norms without experts
  std::int64_t output_bytes_ = 0;             // the output matrix and the final norm
  std::vector<std::int64_t> expert_bytes_{};  // one expert, by layer
  std::int64_t kv_bytes_ = 0;                 // one token's keys and values, all layers
  std::int64_t token_weights_ = 0;            // that a token is multiplied with, in all layers
  std::int64_t output_weights_ = 0;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_STEP_WORK_H_

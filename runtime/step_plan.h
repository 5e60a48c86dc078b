#ifndef JUBAL_RUNTIME_STEP_PLAN_H_
#define JUBAL_RUNTIME_STEP_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/token.h"

namespace jubal {

/// What one data group computes in one step.
struct GroupStep {
  std::vector<TokenId> tokens;           // rows of the batch
  std::vector<std::int32_t> positions;   // of each row in its sequence
  std::vector<std::int32_t> sequences;   // of each row: index into page_table's rows
  std::vector<std::int32_t> page_table;  // [sequences, max_pages] flattened; unused entries 0
  std::int32_t max_pages = 0;            // columns of page_table
  std::vector<std::int32_t> logit_rows;  // rows whose next-token logits the leader wants, ascending

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
};

/// What every rank does next: the leader plans it and broadcasts it, all execute it.
struct StepPlan {
  bool stop = false;              // serve no more; groups is empty
  std::vector<GroupStep> groups;  // one per data group
};

std::vector<std::byte> Encode(const StepPlan& plan);

/// Throws CommunicationError unless the bytes are a plan that Encode made.
StepPlan DecodeStepPlan(std::span<const std::byte> bytes);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_STEP_PLAN_H_

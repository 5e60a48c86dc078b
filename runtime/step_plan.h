#ifndef JUBAL_RUNTIME_STEP_PLAN_H_
#define JUBAL_RUNTIME_STEP_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/token.h"

namespace jubal {

/// Stands in a plan for a token that is not known yet: the one drawn from logit row `use` of the
/// previous step, counted through the groups in turn. Ranks put the drawn token in its place before
/// they compute.
constexpr TokenId PendingToken(std::int64_t use) { return static_cast<TokenId>(-1 - use); }
constexpr bool IsPending(TokenId token) { return token < 0; }
constexpr std::int64_t UseOfPending(TokenId token) { return -1 - std::int64_t{token}; }

/// What one data group computes in one step.
struct GroupStep {
  std::vector<TokenId> tokens;           // rows of the batch, some perhaps pending
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

  std::int64_t num_logit_rows() const;  // of all groups
};

/// `previous_logit_rows` is how many the previous step has, all of which pending tokens may name;
/// 0 where the plan must know its tokens.
std::vector<std::byte> Encode(const StepPlan& plan, std::int64_t previous_logit_rows = 0);

/// Throws CommunicationError unless the bytes are a plan that Encode made with the same number.
StepPlan DecodeStepPlan(std::span<const std::byte> bytes, std::int64_t previous_logit_rows = 0);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_STEP_PLAN_H_

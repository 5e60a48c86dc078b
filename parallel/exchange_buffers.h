#ifndef JUBAL_PARALLEL_EXCHANGE_BUFFERS_H_
#define JUBAL_PARALLEL_EXCHANGE_BUFFERS_H_

#include <cstdint>

#include "kernels/tensor.h"
#include "parallel/expert_exchange.h"
#include "parallel/plan.h"

namespace jubal {

/// The memory of one rank's exchange. The same function that lays the buffers out tells their size.
///
/// A rank's *home tokens* are those of its data group whose expert outputs it sums up: part
/// OwnedRange(tokens, tensor) of them, or, for a small replicated batch, all.
/// A *pair* is a token and one of its choices.
/// In a *padded* step (GPUs only) every expert group brings SlotsOf rows for each home token,
/// whether it has that many or not. Tokens and routing are then replicated whatever the plan says:
/// it takes fewer bytes than padded rows would.
struct ExchangeBuffers {
  // The batch, as ExpertBatch describes it.
  TensorView tokens;
  TensorView partials;
  TensorView offsets;

  // Which pair is which row.
  TensorView row_of;         // [all tokens, top_k] i32: rows of the batch; where replicated
  TensorView token_of;       // [all tokens · top_k] i32; where replicated
  TensorView home_offsets;   // [experts + 1] i32: home pairs of each expert
  TensorView home_row_of;    // [home tokens, top_k] i32: rows of the home pairs, expert-major;
                             // of a padded step, where they come home
  TensorView home_token_of;  // [home tokens · top_k] i32
  TensorView index;          // [most rows packed or regrouped] i32
  TensorView count;          // [1] i32

  // On the way there; the memory serves again on the way back.
  TensorView all_x;     // [all tokens, hidden] f32; where replicated, with several data groups
  TensorView all_ids;   // [all tokens, top_k] i32; likewise
  TensorView outgoing;  // [home pairs, hidden] f32; all-to-all
  TensorView incoming;  // [max rows, hidden] f32: rows as they arrive; all-to-all. One expert's
                        // arrive in order: `tokens`

  // On the way back. In a padded step a home token's slots stand for its pairs.
  TensorView packed;    // [own subtrees · rows, hidden] f32: partials by destination
  TensorView returned;  // [subtrees · home pairs, hidden] f32: partials by source
  TensorView outputs;   // [home pairs, hidden] f32: completed; where several ranks share an expert

  std::int64_t bytes = 0;  // of all of them
};

/// With `memory` null the views are for their sizes only.
ExchangeBuffers LayOut(const ParallelPlan& plan, const Seat& seat, const ExchangeSizes& sizes,
                       std::byte* memory);

/// Whether every rank sums up all of the step's tokens: one round of messages instead of two.
/// `tokens`: of the one data group.
bool HomeIsEverywhere(const ParallelPlan& plan, const ExchangeSizes& sizes, std::int64_t tokens);

/// Most tokens that a data group may have in a padded step. Where there is one expert group nothing
/// is padded, and every step may be one.
std::int64_t PaddedTokens(const ParallelPlan& plan, const ExchangeSizes& sizes);

/// Most choices of a token among the experts of one group.
std::int64_t SlotsOf(const ParallelPlan& plan, const ExchangeSizes& sizes);

/// Subtrees that the member with that expert_tensor index brings.
std::int64_t SubtreesOf(const ParallelPlan& plan, int expert_tensor);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_EXCHANGE_BUFFERS_H_

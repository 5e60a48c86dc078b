#ifndef JUBAL_PARALLEL_PLAN_H_
#define JUBAL_PARALLEL_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/chunks.h"

namespace jubal {

/// How tokens meet their experts. Both forms give the same bits.
enum class Exchange : std::uint8_t {
  kReplicated,  // every rank of an attention group has all its tokens and computes its experts'
                // part
  kAllToAll,    // tokens are divided over the ranks and sent to the ranks that hold their experts
};

/// How a world of ranks divides one model. Attention and experts divide the same ranks, two ways:
///
///   attention   world rank = d · tensor + t          e.g. 8 ranks: data 1, tensor 8
///   experts     world rank = e · expert_tensor + x   e.g. 8 ranks: expert 8, expert_tensor 1
///
/// The tensor factor varies fastest, so a tensor group is neighbouring ranks, on one node.
struct ParallelPlan {
  int data = 1;           // copies of attention, each serving its own requests
  int tensor = 1;         // ranks sharing one attention layer and the vocabulary, 1 … 8
  int expert = 1;         // groups owning different experts
  int expert_tensor = 1;  // ranks sharing one expert by chunks of its inner features, 1 … 8
  Exchange exchange = Exchange::kReplicated;

  int world() const { return data * tensor; }
  std::string ToString() const;  // "data 1 × tensor 8 = expert 2 × expert_tensor 4, replicated"
};

/// The plan for `world` ranks. Without `expert_parallel`: 1 for kReplicated, the largest divisor of
/// `world` that is at most `experts` for kAllToAll. Throws UserError(kUsage) naming the numbers
/// when a degree does not divide the world, a factor would pass 8, or there are more groups than
/// experts.
ParallelPlan MakePlan(int world, int experts, Exchange exchange, std::optional<int> expert_parallel,
                      int data_parallel);

/// Part `index` of [0, extent) cut into `count` nearly equal parts, in order:
/// [⌊extent·index/count⌋, ⌊extent·(index+1)/count⌋).
Range OwnedRange(std::int64_t extent, int index, int count);

/// One rank's seat: its coordinates in both factorings.
struct Seat {
  int world_rank = 0;
  int data = 0;
  int tensor = 0;
  int expert = 0;
  int expert_tensor = 0;
};

Seat SeatOf(const ParallelPlan& plan, int world_rank);

/// Experts of expert group `group`.
Range OwnedExperts(const ParallelPlan& plan, int experts, int group);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_PLAN_H_

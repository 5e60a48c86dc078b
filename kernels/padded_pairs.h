#ifndef JUBAL_KERNELS_PADDED_PAIRS_H_
#define JUBAL_KERNELS_PADDED_PAIRS_H_

#include "kernels/tensor.h"

namespace jubal {

// Rows of (token, choice) pairs in places that do not depend on how many there are: a token has
// `slots` of them in each group of experts, and takes as many as it has choices there, in the order
// of its choices.

/// What one group of experts has computed, spread out: out[t · slots + i, :] = x[row, :] for the
/// i-th non-negative row of row_of[t, :]. Other rows of out are left alone.
struct PackPairs {
  TensorView out;          // [tokens · slots, n] f32, dense
  ConstTensorView x;       // [rows, n] f32, dense
  ConstTensorView row_of;  // [tokens, top_k] i32, at most `slots` of a token non-negative
  std::int64_t slots = 0;  // ≤ top_k
};

/// Where each pair is when the groups' packed pairs lie one group after the other:
///   row_of[t, j] = (group · tokens + t) · slots + (choices of t before j in the same group)
/// Group g of them has the experts ⌊experts · g / groups⌋ up to ⌊experts · (g + 1) / groups⌋.
struct PlacePairs {
  TensorView row_of;         // [tokens, top_k] i32
  ConstTensorView topk_ids;  // [tokens, top_k] i32, each of an expert
  std::int64_t experts = 0;
  std::int64_t groups = 0;  // ≤ experts
  std::int64_t slots = 0;
};

void Check(const PackPairs& op);
void RunOnCpu(const PackPairs& op);

void Check(const PlacePairs& op);
void RunOnCpu(const PlacePairs& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PADDED_PAIRS_H_

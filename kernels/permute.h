#ifndef JUBAL_KERNELS_PERMUTE_H_
#define JUBAL_KERNELS_PERMUTE_H_

#include "kernels/chunks.h"
#include "kernels/tensor.h"

namespace jubal {

/// Orders the (token, choice) pairs that go to experts [experts.begin, experts.end) by expert, then
/// token: pair (t, j) gets row number row_of[t, j] of the expert batch, or −1 when its expert is
/// not among them.
struct GroupByExpert {
  TensorView offsets;   // [experts.size() + 1] i32: rows of local expert e start at offsets[e]
  TensorView row_of;    // [tokens, top_k] i32
  TensorView token_of;  // [tokens · top_k] i32: the token of each row; rows used: offsets.back
  ConstTensorView topk_ids;  // [tokens, top_k] i32; −1 is nobody's
  Range experts;             // global ids
};

/// out[r, :] = x[index[r], :] for r < count[0].
struct GatherRows {
  TensorView out;         // [≥ count, n], rows dense
  ConstTensorView x;      // [tokens, n] of out's dtype
  ConstTensorView index;  // [≥ count] i32
  ConstTensorView count;  // [1] i32
};

void Check(const GroupByExpert& op);
void RunOnCpu(const GroupByExpert& op);

void Check(const GatherRows& op);
void RunOnCpu(const GatherRows& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PERMUTE_H_

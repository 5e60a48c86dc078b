#ifndef JUBAL_KERNELS_COMBINE_EXPERTS_H_
#define JUBAL_KERNELS_COMBINE_EXPERTS_H_

#include "kernels/tensor.h"

namespace jubal {

/// out[t, :] = Σ_j topk_weights[t, j] · y[row_of[t, j], :], the terms added in ascending order of
/// expert id, starting from the first: the order does not depend on who computed what.
struct CombineExperts {
  TensorView out;                // [tokens, hidden] f32
  ConstTensorView y;             // [rows, hidden] f32: completed expert outputs
  ConstTensorView row_of;        // [tokens, top_k] i32: rows of y
  ConstTensorView topk_ids;      // [tokens, top_k] i32
  ConstTensorView topk_weights;  // [tokens, top_k] f32
};

void Check(const CombineExperts& op);
void RunOnCpu(const CombineExperts& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_COMBINE_EXPERTS_H_

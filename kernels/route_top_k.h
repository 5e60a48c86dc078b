#ifndef JUBAL_KERNELS_ROUTE_TOP_K_H_
#define JUBAL_KERNELS_ROUTE_TOP_K_H_

#include "kernels/tensor.h"

namespace jubal {

/// Picks each token's experts: the top_k largest of softmax(logits) over all experts. On a tie the
/// lower expert id comes first, and a logit that is not a number comes last: its weights are not
/// numbers either, for the engine to notice.
///
/// Source: xai-org/grok-1 model.py, MoELayer (weights kept as they are); Mixtral rescales them to
/// sum to one.
struct RouteTopK {
  TensorView topk_ids;      // [tokens, top_k] i32, most probable first
  TensorView topk_weights;  // [tokens, top_k] f32
  ConstTensorView logits;   // [tokens, experts] f32
  bool renormalize = false;
};

void Check(const RouteTopK& op);
void RunOnCpu(const RouteTopK& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_ROUTE_TOP_K_H_

#ifndef JUBAL_KERNELS_ROPE_H_
#define JUBAL_KERNELS_ROPE_H_

#include "kernels/tensor.h"

namespace jubal {

/// Rotates each head by its token's position, in place, half-split: elements i and i + d/2 form a
/// pair, turned by the angle position · frequencies[i] (both in fp32), below 2³¹.
/// Source: xai-org/grok-1 model.py, RotaryEmbedding.
struct Rope {
  TensorView heads;             // [tokens, heads · head_dim] f32
  ConstTensorView positions;    // [tokens] i32, ≥ 0
  ConstTensorView frequencies;  // [head_dim / 2] f32
};

void Check(const Rope& op);
void RunOnCpu(const Rope& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_ROPE_H_

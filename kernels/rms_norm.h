#ifndef JUBAL_KERNELS_RMS_NORM_H_
#define JUBAL_KERNELS_RMS_NORM_H_

#include "kernels/tensor.h"

namespace jubal {

/// out[t, :] = scale · x[t, :] / sqrt(mean(x[t, :]²) + epsilon)
///
/// `scale` multiplies as stored, not as 1 + scale.
/// Source: xai-org/grok-1 model.py, RMSNorm.
struct RmsNorm {
  TensorView out;         // [tokens, hidden] f32; may be x
  ConstTensorView x;      // [tokens, hidden] f32
  ConstTensorView scale;  // [hidden] f32
  float epsilon = 1e-5f;
};

void Check(const RmsNorm& op);
void RunOnCpu(const RmsNorm& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_RMS_NORM_H_

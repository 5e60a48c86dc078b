#ifndef JUBAL_KERNELS_ADD_H_
#define JUBAL_KERNELS_ADD_H_

#include "kernels/tensor.h"

namespace jubal {

/// into += x
struct Add {
  TensorView into;    // [tokens, hidden] f32
  ConstTensorView x;  // [tokens, hidden] f32
};

void Check(const Add& op);
void RunOnCpu(const Add& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_ADD_H_

#ifndef JUBAL_KERNELS_COPY_H_
#define JUBAL_KERNELS_COPY_H_

#include "kernels/tensor.h"

namespace jubal {

/// out ← x, element by element; either may have a row stride. `x` may lie in host memory whatever
/// the stream: so inputs reach the device.
struct Copy {
  TensorView out;
  ConstTensorView x;  // out's shape and dtype
};

/// out ← 0
struct Zero {
  TensorView out;  // dense
};

void Check(const Copy& op);
void RunOnCpu(const Copy& op);

void Check(const Zero& op);
void RunOnCpu(const Zero& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_COPY_H_

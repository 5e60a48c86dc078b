#ifndef JUBAL_KERNELS_CUDA_FORMS_H_
#define JUBAL_KERNELS_CUDA_FORMS_H_

#include "kernels/copy.h"
#include "kernels/rms_norm.h"
#include "kernels/stream.h"

namespace jubal {

// The GPU form of each operation: enqueues it. Operands lie on the GPU but where the operation says
// otherwise.
void RunOnGpu(const Copy& op, Stream& stream);
void RunOnGpu(const RmsNorm& op, Stream& stream);
void RunOnGpu(const Zero& op, Stream& stream);

/// From now on Run() finds them. Called when a GPU is opened.
void InstallGpuForms();

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_FORMS_H_

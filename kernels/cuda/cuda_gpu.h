#ifndef JUBAL_KERNELS_CUDA_CUDA_GPU_H_
#define JUBAL_KERNELS_CUDA_CUDA_GPU_H_

#include <memory>

#include "kernels/gpu.h"

namespace jubal {

/// NVIDIA GPUs that this process sees; 0 without a driver.
int CountCudaGpus();

/// Number `index` of them, current for the calling thread. Gives every operation its GPU form.
/// Throws GpuError.
std::unique_ptr<Gpu> OpenCudaGpu(int index);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_CUDA_GPU_H_

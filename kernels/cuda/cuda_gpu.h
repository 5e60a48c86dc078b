#ifndef JUBAL_KERNELS_CUDA_CUDA_GPU_H_
#define JUBAL_KERNELS_CUDA_CUDA_GPU_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/gpu.h"

namespace jubal {

/// GpuInfo::uuid of each NVIDIA GPU that this process sees; none without a driver. Takes no memory
/// on them.
std::vector<std::string> CudaGpuUuids();

/// Number `index` of them, current for the calling thread. Gives every operation its GPU form.
/// Throws GpuError.
std::unique_ptr<Gpu> OpenCudaGpu(int index);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_CUDA_GPU_H_

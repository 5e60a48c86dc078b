#ifndef JUBAL_KERNELS_CUDA_CUDA_ERROR_H_
#define JUBAL_KERNELS_CUDA_CUDA_ERROR_H_

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/gpu.h"

namespace jubal {

/// Throws GpuError when a call of the CUDA runtime failed: "WHAT: TEXT (NAME)".
inline void CheckCuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw GpuError(std::string(what) + ": " + cudaGetErrorString(status) + " (" +
                 cudaGetErrorName(status) + ")");
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_CUDA_ERROR_H_

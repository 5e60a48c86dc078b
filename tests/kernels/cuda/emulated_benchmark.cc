// Lets benchmarks/kernels/cuda/gpu_benchmark.cc run where no GPU is.

#include "kernels/cuda/cuda_gpu.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"

namespace jubal {

std::vector<std::string> CudaGpuUuids() { return {"GPU-emulated"}; }

std::unique_ptr<Gpu> OpenCudaGpu(int /*index*/) { return OpenEmulatedGpu(); }

}  // namespace jubal

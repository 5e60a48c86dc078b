#include <cstdlib>

#include "kernels/cuda/cuda_gpu.h"
#include "launch/gpu_driver.h"
#ifdef JUBAL_NCCL
#include "parallel/nccl_communicator.h"
#endif

namespace jubal {
namespace {

#ifdef JUBAL_NCCL
std::unique_ptr<Communicator> Connect(std::unique_ptr<Communicator> world, Gpu& gpu) {
  NcclOptions options;
  if (const char* const key = std::getenv(kNcclKeyVariable)) options.encryption_key = key;
  return OverNccl(std::move(world), gpu, options);
}
#else
constexpr std::unique_ptr<Communicator> (*Connect)(std::unique_ptr<Communicator>, Gpu&) = nullptr;
#endif

}  // namespace

GpuDriver ProgramGpuDriver() {
  return {.uuids = CudaGpuUuids, .open = OpenCudaGpu, .connect = Connect};
}

}  // namespace jubal

#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "kernels/cuda/cuda_gpu.h"
#include "launch/gpu_driver.h"
#include "launch/memory_size.h"
#ifdef JUBAL_NCCL
#include "parallel/nccl_communicator.h"
#endif

namespace jubal {

#ifdef JUBAL_NCCL
namespace {

std::unique_ptr<Communicator> Connect(std::unique_ptr<Communicator> world, Gpu& gpu) {
  NcclOptions options;
  if (const char* const key = std::getenv(kNcclKeyVariable)) options.encryption_key = key;
  return OverNccl(std::move(world), gpu, options);
}

std::string Describe(const Communicator& world) {
  const std::optional<std::int64_t> memory = NcclMemory(world);
  const std::string held = memory ? fmt::format(", which holds {}", MemorySizeText(*memory)) : "";
  return fmt::format("NCCL {}{}", NcclVersion(), held);
}

}  // namespace
#endif

GpuDriver ProgramGpuDriver() {
  GpuDriver driver{.uuids = CudaGpuUuids, .open = OpenCudaGpu};
#ifdef JUBAL_NCCL
  driver.connect = Connect;
  driver.describe = Describe;
#endif
  return driver;
}

}  // namespace jubal

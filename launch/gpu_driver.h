#ifndef JUBAL_LAUNCH_GPU_DRIVER_H_
#define JUBAL_LAUNCH_GPU_DRIVER_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/gpu.h"
#include "parallel/communicator.h"

namespace jubal {

/// How a program reaches GPUs. All null: it was built without.
struct GpuDriver {
  /// The GPUs that this process sees, in the order of their numbers.
  std::vector<std::string> (*uuids)() = nullptr;
  std::unique_ptr<Gpu> (*open)(int index) = nullptr;
  /// Lets ranks that have a GPU each meet through NCCL: parallel/nccl_communicator.h. Null: it was
  /// built without NCCL.
  std::unique_ptr<Communicator> (*connect)(std::unique_ptr<Communicator> world, Gpu& gpu) = nullptr;
  /// What carries such a world, and what that takes of the GPU: "NCCL 2.32.3, which holds …".
  std::string (*describe)(const Communicator& world) = nullptr;
};

/// This program's: cuda_driver.cc, or no_driver.cc in a build without CUDA.
GpuDriver ProgramGpuDriver();

}  // namespace jubal

#endif  // JUBAL_LAUNCH_GPU_DRIVER_H_

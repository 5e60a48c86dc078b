#ifndef JUBAL_LAUNCH_DEVICES_H_
#define JUBAL_LAUNCH_DEVICES_H_

#include <memory>
#include <optional>

#include "kernels/gpu.h"
#include "kernels/tensor.h"
#include "launch/gpu_driver.h"
#include "parallel/communicator.h"

namespace jubal {

/// What this rank computes on, and how it meets the others there.
struct RankDevice {
  std::unique_ptr<Gpu> gpu = nullptr;   // null: the CPU
  std::unique_ptr<Communicator> world;  // of the same ranks; its end comes before the GPU's
  bool connected = false;               // by GpuDriver::connect
};

/// Gives each rank its GPU, or all of them their CPUs: as `wanted` says, or else GPUs where there
/// are some. Ranks that have a GPU each meet through NCCL; where several share one, their messages
/// pass through host memory. The leader says on standard error what was chosen. Collective. Throws
/// UserError on all ranks alike.
RankDevice ChooseDevice(std::optional<Device> wanted, const GpuDriver& driver,
                        std::unique_ptr<Communicator> world);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_DEVICES_H_

#include "launch/devices.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernels/error.h"
#include "launch/memory_size.h"
#include "launch/world.h"
#include "parallel/gather_values.h"
#include "parallel/gpu_assignment.h"
#include "parallel/host_staged_communicator.h"

namespace jubal {
namespace {

void RequireGpus(const GpuDriver& driver, std::size_t visible) {
  if (driver.open == nullptr) {
    throw UserError(ExitStatus::kConfig,
                    "--device cuda: this jubal was built without CUDA; install the CUDA toolkit "
                    "and build it again, or give --device cpu");
  }
  if (visible == 0) {
    throw UserError(ExitStatus::kConfig,
                    "--device cuda: this process sees no NVIDIA GPU; nvidia-smi and "
                    "CUDA_VISIBLE_DEVICES tell more, and --device cpu computes without");
  }
}

std::string Description(const GpuInfo& info) {
  return fmt::format("{}, {} of {} free", info.name, MemorySizeText(info.free_bytes),
                     MemorySizeText(info.memory_bytes));
}

}  // namespace

RankDevice ChooseDevice(std::optional<Device> wanted, const GpuDriver& driver,
                        std::unique_ptr<Communicator> world) {
  if (wanted == Device::kCpu) return {.world = std::move(world)};
  std::vector<std::string> visible;
  if (driver.uuids != nullptr) visible = driver.uuids();
  Agree(*world, [&] {
    if (wanted == Device::kCuda) RequireGpus(driver, visible.size());
  });
  const std::vector<int> counts = GatherValues(*world, static_cast<int>(visible.size()));
  if (std::all_of(counts.begin(), counts.end(), [](int count) { return count == 0; })) {
    return {.world = std::move(world)};
  }
  const GpuAssignment assignment = AssignGpus(*world, visible);
  std::unique_ptr<Gpu> gpu = driver.open(assignment.gpu);
  const bool leader = world->rank() == 0;
  const bool alone = world->size() == 1;
  const bool direct = !alone && !assignment.shared && driver.connect != nullptr;
  if (leader) {
    fmt::print(stderr, "computing on {}{}\n", Description(gpu->info()), alone ? "" : ":");
    if (!alone) fmt::print(stderr, "{}", assignment.table);
    if (!alone && !direct) {
      fmt::print(stderr, "{}: their messages pass through host memory, which is slow\n",
                 assignment.shared ? "ranks share a GPU" : "this jubal was built without NCCL");
    }
  }
  world = direct ? driver.connect(std::move(world), *gpu) : OverHostMemory(std::move(world), *gpu);
  return {.gpu = std::move(gpu), .world = std::move(world), .connected = direct};
}

}  // namespace jubal

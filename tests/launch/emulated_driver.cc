#include "launch/gpu_driver.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"

namespace jubal {

/// Each process sees one and the same card.
GpuDriver ProgramGpuDriver() {
  return {.uuids = [] { return std::vector<std::string>{"GPU-emulated"}; },
          .open = [](int /*index*/) { return OpenEmulatedGpu(); }};
}

}  // namespace jubal

#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"

namespace jubal {

std::vector<std::string> TestGpus() { return {"Forward", "Backward"}; }

Gpu& OpenTestGpu(const std::string& name) {
  static const std::unique_ptr<Gpu> forward = OpenEmulatedGpu(FiberOrder::kForward);
  static const std::unique_ptr<Gpu> backward = OpenEmulatedGpu(FiberOrder::kBackward);
  return name == "Forward" ? *forward : *backward;
}

}  // namespace jubal

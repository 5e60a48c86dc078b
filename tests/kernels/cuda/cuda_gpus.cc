#include "kernels/cuda/cuda_gpu.h"

#include <cstdio>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {

std::vector<std::string> TestGpus() { return {"Cuda"}; }

Gpu& OpenTestGpu(const std::string& /*name*/) {
  static const std::unique_ptr<Gpu> gpu = OpenCudaGpu(0);
  return *gpu;
}

}  // namespace jubal

int main(int argc, char** argv) {
  if (jubal::CudaGpuUuids().empty()) {
    std::puts("no GPU here");
    constexpr int kSkipped = 77;
    return kSkipped;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

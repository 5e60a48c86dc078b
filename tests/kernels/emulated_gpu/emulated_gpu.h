#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_

#include <memory>

#include "kernels/gpu.h"
#include "tests/kernels/emulated_gpu/fiber_grid.h"

namespace jubal {

/// A GPU that runs the kernels of kernels/cuda on the CPU, to test them and all that drives a GPU.
///
/// It is late wherever a GPU may be late: what is enqueued runs when somebody waits for it. Its
/// memory can be touched only then: at other times a read or write faults, as it would on a host
/// with a GPU.
std::unique_ptr<Gpu> OpenEmulatedGpu(FiberOrder order = FiberOrder::kForward);

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_

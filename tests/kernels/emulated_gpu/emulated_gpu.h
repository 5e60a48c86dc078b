#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_

#include <functional>
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

/// Enqueues work of the host to the emulated queue with that handle, for what other libraries
/// enqueue. `start` is called when the queue gets there, once for each launch of a graph that holds
/// it; what it returns is called until it returns true, and meanwhile the queue is not done. Both
/// may touch the GPU's memory, at these times alone.
void EnqueueHostWork(void* queue_handle, std::function<std::function<bool()>()> start);

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_EMULATED_GPU_EMULATED_GPU_H_

#ifndef JUBAL_KERNELS_CUDA_DEVICE_H_
#define JUBAL_KERNELS_CUDA_DEVICE_H_

// What every file with kernels includes: the language they are written in.
//
// Each *.cu file here is compiled twice: by nvcc, and by g++ for the emulated GPU of the tests
// (tests/kernels/emulated_gpu), which brings the same names itself. So that both can:
//   - a kernel is launched by Launch(), with whole warps;
//   - it takes its shared memory from BlockShared<T>(), and has no __shared__ variables;
//   - warp functions (__shfl_*_sync, __ballot_sync …) have the mask kFullWarp and are reached by
//   all
//     32 lanes; __syncthreads is reached by all threads of the block;
//   - inline PTX stands in ptx.h alone.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/chunks.h"
#include "kernels/stream.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include "kernels/cuda/cuda_error.h"
#endif

namespace jubal {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;

#ifdef __CUDACC__

/// The block's shared memory, as the T of whose size Launch was told. Not initialised.
template <class T>
__device__ __forceinline__ T& BlockShared() {
  extern __shared__ __align__(16) std::byte shared_memory[];
  return *reinterpret_cast<T*>(shared_memory);
}

/// Enqueues kernel(arguments...) on blocks of `threads` threads. An empty grid launches nothing.
template <class... Parameters>
void Launch(Stream& stream, void (*kernel)(Parameters...), dim3 grid, int threads,
            std::size_t shared_bytes, std::type_identity_t<Parameters>... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kWithoutAsking) {
    CheckCuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              "a kernel's shared memory");
  }
  void* pointers[] = {&arguments...};
  CheckCuda(cudaLaunchKernel(function, grid, dim3(static_cast<unsigned>(threads)), pointers,
                             shared_bytes, static_cast<cudaStream_t>(stream.queue().handle())),
            "launching a kernel");
}

#endif

/// A grid's extent from 64-bit counts.
inline unsigned Extent(std::int64_t count) {
  CHECK(0 <= count && count <= 0x7fffffff);
  return static_cast<unsigned>(count);
}

/// The elements of a tensor on the GPU, for a kernel's arguments.
template <class T>
T* DeviceData(TensorView view) {
  CHECK(view.device() == Device::kCuda);
  return view.data<T>();
}
template <class T>
const T* DeviceData(ConstTensorView view) {
  CHECK(view.device() == Device::kCuda);
  return view.data<T>();
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_DEVICE_H_

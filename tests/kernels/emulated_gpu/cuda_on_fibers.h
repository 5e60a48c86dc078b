#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_CUDA_ON_FIBERS_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_CUDA_ON_FIBERS_H_

// CUDA's names for g++, so that it compiles the kernels of kernels/cuda: this file is included in
// front of each. Threads are fibers (fiber_grid.h). What CUDA has and no kernel uses is not here.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "kernels/stream.h"
#include "tests/kernels/emulated_gpu/fiber_grid.h"

// NOLINTBEGIN: names that are not ours.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace jubal {

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;

template <class T>
T& BlockShared() {
  return *reinterpret_cast<T*>(FiberSharedMemory());
}

inline void __syncthreads() { MeetBlock(); }
inline void __syncwarp() { MeetWarp(nullptr, 0); }

template <class T>
T OfLane(T mine, int lane) {
  const WarpValues& all = MeetWarp(&mine, sizeof(T));
  T value;
  std::memcpy(&value, all[lane], sizeof(T));
  return value;
}
inline int ThisLane() { return static_cast<int>(threadIdx.x % 32); }
inline void CheckMask(unsigned mask) { CHECK_EQ(mask, 0xffffffffu); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  CheckMask(mask);
  return OfLane(value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  CheckMask(mask);
  return OfLane(value, ThisLane() ^ lanes);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int lanes) {
  CheckMask(mask);
  return OfLane(value, ThisLane() + lanes < 32 ? ThisLane() + lanes : ThisLane());
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int lanes) {
  CheckMask(mask);
  return OfLane(value, ThisLane() >= lanes ? ThisLane() - lanes : ThisLane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  CheckMask(mask);
  const WarpValues& all = MeetWarp(&predicate, sizeof(predicate));
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    int value;
    std::memcpy(&value, all[lane], sizeof(value));
    ballot |= static_cast<unsigned>(value != 0) << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == 0xffffffffu;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
template <class T>
T AddAt(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
inline int atomicAdd(int* at, int value) { return AddAt(at, value); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return AddAt(at, value); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return AddAt(at, value);
}
[[noreturn]] inline void __trap() { CheckFailed(__FILE__, __LINE__, "a kernel trapped"); }

using std::max;
using std::min;

/// A stream of the emulated GPU, and where the launch stands in the source.
struct LaunchPlace {
  LaunchPlace(Stream& on, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : stream(on), where{file, line} {}

  Stream& stream;
  SourceLine where;
};

void EnqueueGrid(const LaunchPlace& place, GridSize grid, unsigned threads,
                 std::size_t shared_bytes, std::function<void()> body);

template <class... Parameters>
void Launch(LaunchPlace place, void (*kernel)(Parameters...), dim3 grid, int threads,
            std::size_t shared_bytes, std::type_identity_t<Parameters>... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  EnqueueGrid(place, {grid.x, grid.y, grid.z}, static_cast<unsigned>(threads), shared_bytes,
              [=] { kernel(arguments...); });
}

}  // namespace jubal

// NOLINTEND

#include "tests/kernels/emulated_gpu/ptx.h"

#endif  // JUBAL_TESTS_KERNELS_EMULATED_GPU_CUDA_ON_FIBERS_H_

#ifndef JUBAL_KERNELS_CUDA_PTX_H_
#define JUBAL_KERNELS_CUDA_PTX_H_

// All inline PTX of the project. The emulated GPU has functions of the same names and meaning
// (tests/kernels/emulated_gpu/ptx.h).
//
// A product of matrix fragments, D += A · B, is computed by a warp. Of lane l, with g = l / 4 and
// t = l % 4, each 32-bit word of A and B holds elements that follow each other along k:
//   a[0] row g, word t      a[1] row g + 8, word t      a[2] row g, word t + 4      a[3] row g + 8,
//   word t + 4              b[0] column g, word t       b[1] column g, word t + 4
//   d[0] row g, column 2t   d[1] row g, column 2t + 1   d[2], d[3] the same of row g + 8
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "… mma.m16n8k32".

#ifdef __CUDACC__

#include <cstdint>

namespace jubal {

/// 16 × 8, k = 32, signed bytes; exact modulo 2³².
__device__ __forceinline__ void MmaInt8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// 16 × 8, k = 16, bfloat16 with fp32 sums.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Reads 16 bytes that nobody reads again soon: weights.
__device__ __forceinline__ uint4 LoadStreaming(const uint4* from) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(from));
  return value;
}

/// Starts to copy 16 bytes to shared memory.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
/// Ends a group of copies.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most kPending of the thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace jubal

#endif

#endif  // JUBAL_KERNELS_CUDA_PTX_H_

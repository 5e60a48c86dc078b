#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_PTX_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_PTX_H_

// kernels/cuda/ptx.h for the emulated GPU: the same functions, from what the PTX ISA says of the
// instructions.

#include <cstdint>

#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

namespace jubal {

void MmaInt8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
/// The hardware's order of sums is its own: here it is along k.
void MmaBf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

inline uint4 LoadStreaming(const uint4* from) { return *from; }

/// Copies when the thread waits for it, so that what is read too early is wrong.
inline void CopyAsync16(void* shared, const void* global) { AddPendingCopy(shared, global); }
inline void CommitCopies() { EndCopyGroup(); }
template <int kPending>
void WaitForCopies() {
  FinishCopyGroups(kPending);
}

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_EMULATED_GPU_PTX_H_

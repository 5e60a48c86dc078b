#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_PTX_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_PTX_H_

// kernels/cuda/ptx.h for the emulated GPU: the same functions, from what the PTX ISA says of the
// instructions.

#include <cstdint>
#include <cstring>

#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

namespace jubal {

struct Fragments {
  std::uint32_t a[4];
  std::uint32_t b[2];
};

/// Calls add(row, column, word of A, word of B) for what belongs to this lane's four elements of D,
/// along k: element i is row g + 8·(i / 2), column 2t + i % 2.
template <class Add>
void ForEachProduct(const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Add& add) {
  Fragments mine{};
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  MeetWarp(&mine, sizeof(mine));
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4;
    const int column = lane % 4 * 2 + i % 2;
    for (int word = 0; word < 8; ++word) {
      Fragments of_row;
      Fragments of_column;
      std::memcpy(&of_row, LaneValue(row * 4 + word % 4), sizeof(Fragments));
      std::memcpy(&of_column, LaneValue(column * 4 + word % 4), sizeof(Fragments));
      add(i, of_row.a[i / 2 + word / 4 * 2], of_column.b[word / 4]);
    }
  }
}

inline void MmaInt8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                    const std::uint32_t (&b)[2]) {
  ForEachProduct(a, b, [&](int i, std::uint32_t of_a, std::uint32_t of_b) {
    for (int byte = 0; byte < 4; ++byte) {
      const std::int32_t product = std::int32_t{static_cast<std::int8_t>(of_a >> (8 * byte))} *
                                   static_cast<std::int8_t>(of_b >> (8 * byte));
      d[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(d[i]) +
                                       static_cast<std::uint32_t>(product));
    }
  });
}

/// The hardware's order of sums is its own: here it is along k.
inline void MmaBf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  ForEachProduct(a, b, [&](int i, std::uint32_t of_a, std::uint32_t of_b) {
    d[i] += __builtin_bit_cast(float, of_a << 16) * __builtin_bit_cast(float, of_b << 16);
    d[i] += __builtin_bit_cast(float, of_a & 0xffff0000u) *
            __builtin_bit_cast(float, of_b & 0xffff0000u);
  });
}

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

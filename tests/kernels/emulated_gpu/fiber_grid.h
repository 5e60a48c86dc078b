#ifndef JUBAL_TESTS_KERNELS_EMULATED_GPU_FIBER_GRID_H_
#define JUBAL_TESTS_KERNELS_EMULATED_GPU_FIBER_GRID_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace jubal {

inline constexpr std::size_t kLanes = 32;
inline constexpr std::size_t kLaneBytes = 64;
/// What the lanes of a warp bring to a meeting, at most.
using WarpValues = std::byte[kLanes][kLaneBytes];

/// A line of the source. (clang 14 has no std::source_location.)
struct SourceLine {
  const char* file;
  int line;
};

struct GridSize {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

/// In which order the threads of a block, and the blocks of a grid, are run. Results that differ
/// miss a barrier.
enum class FiberOrder : std::uint8_t { kForward, kBackward };

/// Runs body() once for each thread of each block: blocks one after the other, the threads of a
/// block as fibers that change places where they meet. Shared memory is filled with 0xff, which is
/// NaN, before each block. Ends the process, naming `where`, when threads wait for ever: for others
/// that have left, or that wait elsewhere.
void RunGrid(const SourceLine& where, GridSize grid, unsigned threads, std::size_t shared_bytes,
             FiberOrder order, const std::function<void()>& body);

// For the functions below: inside body() only.

std::byte* FiberSharedMemory();
/// Returns when all threads of the block have called it.
void MeetBlock();
/// Gives the warp's lanes a look at what each of them brings: `bytes` at `mine`. Returns what all
/// brought when all 32 have called it; valid until the second call from now. The last one to arrive
/// lets join() change the values first.
const WarpValues& MeetWarp(const void* mine, std::size_t bytes,
                           void (*join)(WarpValues&) = nullptr);

/// Copies 16 bytes when this thread waits for the group that the copy belongs to.
void AddPendingCopy(void* to, const void* from);
void EndCopyGroup();
/// Returns when at most `pending` of the thread's latest groups are left.
void FinishCopyGroups(std::size_t pending);

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_EMULATED_GPU_FIBER_GRID_H_

#include "tests/kernels/emulated_gpu/fiber_grid.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace jubal {

thread_local uint3 threadIdx;
thread_local uint3 blockIdx;
thread_local dim3 blockDim;
thread_local dim3 gridDim;

namespace {

namespace context = boost::context::detail;

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kMostThreads = 1024;
constexpr std::size_t kLanes = 32;
constexpr std::size_t kLaneBytes = 64;

struct Warp {
  unsigned arrived = 0;
  std::uint64_t meetings = 0;
  alignas(16) std::byte values[2][kLanes][kLaneBytes];
};

struct PendingCopy {
  void* to;
  const void* from;
};

struct Fiber {
  context::fcontext_t context = nullptr;
  // Where it waits: until *meetings differs from `seen`.
  const std::uint64_t* meetings = nullptr;
  std::uint64_t seen = 0;
  bool finished = false;
  void* fake_stack = nullptr;  // AddressSanitizer's
  std::vector<PendingCopy> copies;
  std::deque<std::size_t> group_ends;  // of the groups not waited for, into `copies`

  bool waiting() const { return meetings != nullptr && *meetings == seen; }
};

/// Stacks for the threads of a block, taken once for each thread of the host.
class Stacks {
 public:
  Stacks()
      : memory_(static_cast<std::byte*>(mmap(nullptr, kMostThreads * kStackBytes,
                                             PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    CHECK(memory_ != MAP_FAILED);
    // A page at the end of each that nobody may touch.
    for (std::size_t i = 0; i < kMostThreads; ++i) {
      CHECK(mprotect(memory_ + i * kStackBytes, 4096, PROT_NONE) == 0);
    }
  }
  ~Stacks() { munmap(memory_, kMostThreads * kStackBytes); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  std::byte* Bottom(std::size_t thread) const { return memory_ + thread * kStackBytes + 4096; }
  static constexpr std::size_t kUsable = kStackBytes - 4096;

 private:
  std::byte* memory_;
};

thread_local Stacks stacks;

/// One block under way.
class Block {
 public:
  Block(const std::source_location& where, unsigned threads, std::size_t shared_bytes,
        const std::function<void()>& body)
      : where_(where),
        threads_(threads),
        shared_(new std::byte[shared_bytes + 64]),
        body_(body),
        fibers_(threads),
        warps_(threads / kLanes) {
    // Where an overrun ends in AddressSanitizer's red zone, aligned as on a GPU.
    const auto address = reinterpret_cast<std::uintptr_t>(shared_.get());
    shared_memory_ = shared_.get() + (64 - address % 64) % 64;
    shared_bytes_ = shared_bytes;
  }

  void Run(FiberOrder order);

  std::byte* shared_memory() const { return shared_memory_; }
  void MeetAll();
  Fiber& current() { return fibers_[current_]; }
  void MeetLanes(const void* mine, std::size_t bytes);
  const void* Value(int lane) const {
    const Warp& warp = warps_[current_ / kLanes];
    return warp.values[(warp.meetings - 1) % 2][lane];
  }

 private:
  static void Enter(context::transfer_t from);
  void Resume(std::size_t thread);
  void Leave(bool for_good);  // of the current fiber
  void WaitFor(const std::uint64_t& meetings);
  /// Runs the warp's fibers until all of them wait or have finished; false when none could go on.
  bool RunWarp(std::size_t warp, FiberOrder order);
  [[noreturn]] void Fail(const char* how) const;

  const std::source_location where_;
  const std::size_t threads_;
  std::unique_ptr<std::byte[]> shared_;
  std::byte* shared_memory_ = nullptr;
  std::size_t shared_bytes_ = 0;
  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  unsigned arrived_ = 0;  // at the block's barrier
  std::uint64_t meetings_ = 0;
  std::size_t current_ = 0;
  std::size_t finished_ = 0;
  context::fcontext_t scheduler_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
};

thread_local Block* running = nullptr;

void StartSwitch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                 [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}
void FinishSwitch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** bottom,
                  [[maybe_unused]] std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void Block::Enter(context::transfer_t from) {
  Block& block = *static_cast<Block*>(from.data);
  FinishSwitch(nullptr, &block.scheduler_stack_, &block.scheduler_stack_bytes_);
  block.scheduler_ = from.fctx;
  block.body_();
  block.Leave(/*for_good=*/true);
}

void Block::Resume(std::size_t thread) {
  current_ = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  Fiber& fiber = fibers_[thread];
  void* fake_stack = nullptr;
  StartSwitch(&fake_stack, stacks.Bottom(thread), Stacks::kUsable);
  const context::transfer_t back = context::jump_fcontext(fiber.context, this);
  FinishSwitch(fake_stack, nullptr, nullptr);
  fiber.context = back.fctx;
}

void Block::Leave(bool for_good) {
  Fiber& fiber = fibers_[current_];
  if (for_good) {
    fiber.finished = true;
    ++finished_;
  }
  StartSwitch(for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
  const context::transfer_t back = context::jump_fcontext(scheduler_, nullptr);
  FinishSwitch(fiber.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
  scheduler_ = back.fctx;
}

void Block::WaitFor(const std::uint64_t& meetings) {
  Fiber& fiber = fibers_[current_];
  fiber.meetings = &meetings;
  fiber.seen = meetings;
  Leave(/*for_good=*/false);
  fiber.meetings = nullptr;
}

void Block::MeetAll() {
  if (++arrived_ < threads_) {
    WaitFor(meetings_);
    return;
  }
  arrived_ = 0;
  ++meetings_;
}

void Block::MeetLanes(const void* mine, std::size_t bytes) {
  CHECK_LE(bytes, kLaneBytes);
  Warp& warp = warps_[current_ / kLanes];
  if (bytes > 0) std::memcpy(warp.values[warp.meetings % 2][current_ % kLanes], mine, bytes);
  if (++warp.arrived < kLanes) {
    WaitFor(warp.meetings);
    return;
  }
  warp.arrived = 0;
  ++warp.meetings;
}

bool Block::RunWarp(std::size_t warp, FiberOrder order) {
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::size_t lane = order == FiberOrder::kForward ? i : kLanes - 1 - i;
      const std::size_t thread = warp * kLanes + lane;
      if (fibers_[thread].finished || fibers_[thread].waiting()) continue;
      Resume(thread);
      any = progress = true;
    }
  }
  return any;
}

void Block::Run(FiberOrder order) {
  std::memset(shared_memory_, 0xff, shared_bytes_);
  for (std::size_t i = 0; i < threads_; ++i) {
    fibers_[i] = Fiber{};
    fibers_[i].context =
        context::make_fcontext(stacks.Bottom(i) + Stacks::kUsable, Stacks::kUsable, Enter);
  }
  finished_ = 0;
  Block* const before = running;
  running = this;
  while (finished_ < threads_) {
    bool progress = false;
    for (std::size_t i = 0; i < warps_.size(); ++i) {
      progress |= RunWarp(order == FiberOrder::kForward ? i : warps_.size() - 1 - i, order);
    }
    if (!progress) Fail("its threads wait for each other for ever");
  }
  running = before;
  if (arrived_ != 0) Fail("a thread left while others wait at a barrier");
}

void Block::Fail(const char* how) const {
  std::size_t at_barrier = 0;
  std::size_t in_warps = 0;
  for (const Fiber& fiber : fibers_) {
    if (fiber.finished) continue;
    ++(fiber.meetings == &meetings_ ? at_barrier : in_warps);
  }
  std::fprintf(stderr,
               "%s:%u: the kernel launched here, block (%u, %u, %u): %s: of %zu threads %zu have "
               "left, %zu wait at __syncthreads, %zu for their warp\n",
               where_.file_name(), static_cast<unsigned>(where_.line()), blockIdx.x, blockIdx.y,
               blockIdx.z, how, threads_, finished_, at_barrier, in_warps);
  std::abort();
}

}  // namespace

void RunGrid(const std::source_location& where, GridSize grid, unsigned threads,
             std::size_t shared_bytes, FiberOrder order, const std::function<void()>& body) {
  CHECK(threads > 0 && threads <= kMostThreads && threads % kLanes == 0);
  blockDim = dim3(threads);
  gridDim = dim3(grid.x, grid.y, grid.z);
  Block block(where, threads, shared_bytes, body);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = order == FiberOrder::kForward ? i : blocks - 1 - i;
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    block.Run(order);
  }
}

std::byte* FiberSharedMemory() { return running->shared_memory(); }
void MeetBlock() { running->MeetAll(); }
void MeetWarp(const void* mine, std::size_t bytes) { running->MeetLanes(mine, bytes); }
const void* LaneValue(int lane) { return running->Value(lane); }

void AddPendingCopy(void* to, const void* from) { running->current().copies.push_back({to, from}); }

void EndCopyGroup() {
  Fiber& fiber = running->current();
  fiber.group_ends.push_back(fiber.copies.size());
}

void FinishCopyGroups(std::size_t pending) {
  Fiber& fiber = running->current();
  std::size_t done = 0;
  while (fiber.group_ends.size() > pending) {
    for (; done < fiber.group_ends.front(); ++done) {
      std::memcpy(fiber.copies[done].to, fiber.copies[done].from, 16);
    }
    fiber.group_ends.pop_front();
  }
  fiber.copies.erase(fiber.copies.begin(),
                     fiber.copies.begin() + static_cast<std::ptrdiff_t>(done));
  for (std::size_t& end : fiber.group_ends) end -= done;
}

}  // namespace jubal

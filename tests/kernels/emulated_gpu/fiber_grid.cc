#include "tests/kernels/emulated_gpu/fiber_grid.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace jubal {

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

namespace {

namespace context = boost::context::detail;

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kMostThreads = 1024;

struct Warp {
  unsigned arrived = 0;
  std::uint64_t meetings = 0;
  std::size_t next = 0;  // lane to look at, in the order of lanes
  WarpValues values[2];
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
  std::vector<std::size_t> group_ends;  // of the groups not waited for, into `copies`

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
  ~Stacks() {
#if defined(__SANITIZE_ADDRESS__)
    // Frames that nobody returned from; the addresses may soon be somebody else's.
    __asan_unpoison_memory_region(memory_, kMostThreads * kStackBytes);
#endif
    munmap(memory_, kMostThreads * kStackBytes);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  std::byte* Bottom(std::size_t thread) const { return memory_ + thread * kStackBytes + 4096; }
  /// Bytes of the thread's stack. The stacks begin in different sets of the caches: were they all
  /// equally long, a warp would not fit.
  static std::size_t Usable(std::size_t thread) { return kStackBytes - 4096 - thread % 64 * 576; }

 private:
  std::byte* memory_;
};

thread_local Stacks stacks;

/// One block under way.
class Block {
 public:
  Block(const SourceLine& where, unsigned threads, std::size_t shared_bytes, FiberOrder order,
        const std::function<void()>& body)
      : where_(where),
        order_(order),
        threads_(threads),
        stacks_(stacks),
        shared_(new std::byte[shared_bytes + 64]),
        body_(body),
        fibers_(threads),
        warps_(threads / kLanes) {
    // Where an overrun ends in AddressSanitizer's red zone, aligned as on a GPU.
    const auto address = reinterpret_cast<std::uintptr_t>(shared_.get());
    shared_memory_ = shared_.get() + (64 - address % 64) % 64;
    shared_bytes_ = shared_bytes;
  }

  void Run();

  std::byte* shared_memory() const { return shared_memory_; }
  void MeetAll();
  Fiber& current() { return fibers_[current_]; }
  const WarpValues& MeetLanes(const void* mine, std::size_t bytes, void (*join)(WarpValues&));

 private:
  static constexpr std::size_t kNone = ~std::size_t{0};

  static void Enter(context::transfer_t from);
  // Control goes from fiber to fiber of a warp, and from the last to the scheduler. Each side of a
  // jump calls Arrive() when it gets control; `fake_stack` is null in one that never will again.
  context::transfer_t JumpTo(std::size_t thread, void** fake_stack);
  context::transfer_t JumpToScheduler(void** fake_stack);
  void Arrive(context::transfer_t from, void* fake_stack);
  /// Lets another go on, from the current fiber. Inline: after a jump every return is mispredicted.
  [[gnu::always_inline]] inline void Leave(Fiber& fiber, void** fake_stack);
  void WaitFor(const std::uint64_t& meetings);
  /// A thread of the warp that can go on, or kNone. Each gets its turn.
  std::size_t NextOfWarp(std::size_t warp);
  /// Runs the warp's fibers until all of them wait or have finished; false when none could go on.
  bool RunWarp(std::size_t warp);
  [[noreturn]] void Fail() const;

  const SourceLine where_;
  const FiberOrder order_;
  const std::size_t threads_;
  const Stacks& stacks_;
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
  context::fcontext_t* left_ = nullptr;  // where the context of who lost control belongs
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
  block.Arrive(from, nullptr);
  block.body_();
  Fiber& fiber = block.current();
  fiber.finished = true;
  ++block.finished_;
  block.Leave(fiber, nullptr);
}

void Block::Leave(Fiber& fiber, void** fake_stack) {
  const std::size_t next = NextOfWarp(current_ / kLanes);
  left_ = &fiber.context;
  Arrive(next == kNone ? JumpToScheduler(fake_stack) : JumpTo(next, fake_stack), fiber.fake_stack);
}

context::transfer_t Block::JumpTo(std::size_t thread, void** fake_stack) {
  current_ = thread;
  threadIdx.x = static_cast<unsigned>(thread);
  StartSwitch(fake_stack, stacks_.Bottom(thread), Stacks::Usable(thread));
  return context::jump_fcontext(fibers_[thread].context, this);
}

context::transfer_t Block::JumpToScheduler(void** fake_stack) {
  StartSwitch(fake_stack, scheduler_stack_, scheduler_stack_bytes_);
  return context::jump_fcontext(scheduler_, this);
}

void Block::Arrive(context::transfer_t from, void* fake_stack) {
  const void* stack = nullptr;
  std::size_t bytes = 0;
  FinishSwitch(fake_stack, &stack, &bytes);
  if (left_ == &scheduler_) {
    scheduler_stack_ = stack;
    scheduler_stack_bytes_ = bytes;
  }
  *left_ = from.fctx;
}

void Block::WaitFor(const std::uint64_t& meetings) {
  Fiber& fiber = fibers_[current_];
  fiber.meetings = &meetings;
  fiber.seen = meetings;
  Leave(fiber, &fiber.fake_stack);
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

const WarpValues& Block::MeetLanes(const void* mine, std::size_t bytes, void (*join)(WarpValues&)) {
  CHECK_LE(bytes, kLaneBytes);
  Warp& warp = warps_[current_ / kLanes];
  WarpValues& values = warp.values[warp.meetings % 2];
  if (bytes > 0) std::memcpy(values[current_ % kLanes], mine, bytes);
  if (++warp.arrived < kLanes) {
    WaitFor(warp.meetings);
    return values;
  }
  if (join != nullptr) join(values);
  warp.arrived = 0;
  ++warp.meetings;
  return values;
}

std::size_t Block::NextOfWarp(std::size_t warp) {
  std::size_t& next = warps_[warp].next;
  for (std::size_t i = 0; i < kLanes; ++i) {
    const std::size_t lane = order_ == FiberOrder::kForward ? next : kLanes - 1 - next;
    next = (next + 1) % kLanes;
    const std::size_t thread = warp * kLanes + lane;
    if (!fibers_[thread].finished && !fibers_[thread].waiting()) return thread;
  }
  return kNone;
}

bool Block::RunWarp(std::size_t warp) {
  warps_[warp].next = 0;
  const std::size_t first = NextOfWarp(warp);
  if (first == kNone) return false;
  void* fake_stack = nullptr;
  left_ = &scheduler_;
  Arrive(JumpTo(first, &fake_stack), fake_stack);
  return true;
}

void Block::Run() {
  std::memset(shared_memory_, 0xff, shared_bytes_);
  for (std::size_t i = 0; i < threads_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.meetings = nullptr;
    fiber.finished = false;
    fiber.fake_stack = nullptr;
    fiber.copies.clear();
    fiber.group_ends.clear();
    const std::size_t stack = Stacks::Usable(i);
    fiber.context = context::make_fcontext(stacks_.Bottom(i) + stack, stack, Enter);
  }
  finished_ = 0;
  Block* const before = running;
  running = this;
  while (finished_ < threads_) {
    bool progress = false;
    for (std::size_t i = 0; i < warps_.size(); ++i) {
      progress |= RunWarp(order_ == FiberOrder::kForward ? i : warps_.size() - 1 - i);
    }
    if (!progress) Fail();
  }
  running = before;
}

void Block::Fail() const {
  std::size_t at_barrier = 0;
  std::size_t in_warps = 0;
  for (const Fiber& fiber : fibers_) {
    if (fiber.finished) continue;
    ++(fiber.meetings == &meetings_ ? at_barrier : in_warps);
  }
  std::fprintf(stderr,
               "%s:%d: the kernel launched here, block (%u, %u, %u), waits for ever: of %zu "
               "threads %zu have left, %zu wait at __syncthreads, %zu for their warp\n",
               where_.file, where_.line, blockIdx.x, blockIdx.y, blockIdx.z, threads_, finished_,
               at_barrier, in_warps);
  std::abort();
}

}  // namespace

void RunGrid(const SourceLine& where, GridSize grid, unsigned threads, std::size_t shared_bytes,
             FiberOrder order, const std::function<void()>& body) {
  CHECK(threads > 0 && threads <= kMostThreads && threads % kLanes == 0);
  blockDim = dim3(threads);
  gridDim = dim3(grid.x, grid.y, grid.z);
  Block block(where, threads, shared_bytes, order, body);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = order == FiberOrder::kForward ? i : blocks - 1 - i;
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    block.Run();
  }
}

std::byte* FiberSharedMemory() { return running->shared_memory(); }
void MeetBlock() { running->MeetAll(); }
const WarpValues& MeetWarp(const void* mine, std::size_t bytes, void (*join)(WarpValues&)) {
  return running->MeetLanes(mine, bytes, join);
}

void AddPendingCopy(void* to, const void* from) { running->current().copies.push_back({to, from}); }

void EndCopyGroup() {
  Fiber& fiber = running->current();
  fiber.group_ends.push_back(fiber.copies.size());
}

void FinishCopyGroups(std::size_t pending) {
  Fiber& fiber = running->current();
  if (fiber.group_ends.size() <= pending) return;
  const std::size_t groups = fiber.group_ends.size() - pending;
  const std::size_t done = fiber.group_ends[groups - 1];
  for (std::size_t i = 0; i < done; ++i) {
    std::memcpy(fiber.copies[i].to, fiber.copies[i].from, 16);
  }
  fiber.copies.erase(fiber.copies.begin(),
                     fiber.copies.begin() + static_cast<std::ptrdiff_t>(done));
  fiber.group_ends.erase(fiber.group_ends.begin(),
                         fiber.group_ends.begin() + static_cast<std::ptrdiff_t>(groups));
  for (std::size_t& end : fiber.group_ends) end -= done;
}

}  // namespace jubal

#include "tests/kernels/emulated_gpu/emulated_gpu.h"

#include <sched.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/forms.h"
#include "kernels/error.h"
#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

namespace jubal {
namespace {

constexpr std::int64_t kPage = 4096;
constexpr std::int64_t kAlignment = 64;  // of tensors; a real GPU aligns to 256
constexpr std::int64_t kMemory = std::int64_t{8} << 30;

std::int64_t RoundUp(std::int64_t bytes, std::int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// The memory of one GPU: closed to the host while nothing runs. Each piece ends where a page does,
/// between two that stay closed: what runs over either end faults.
class Memory {
 public:
  std::shared_ptr<std::byte> Take(std::int64_t bytes) {
    if (bytes > kMemory) {
      throw UserError(ExitStatus::kConfig, "the emulated GPU does not give that much memory");
    }
    const std::int64_t pages = RoundUp(bytes, kPage);
    void* memory = mmap(nullptr, static_cast<std::size_t>(pages + 2 * kPage), PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    auto* const first = static_cast<std::byte*>(memory) + kPage;
    auto* const begin = first + pages - RoundUp(bytes, kAlignment);
    const std::lock_guard lock(mutex_);
    pieces_[begin] = {first, static_cast<std::size_t>(pages)};
    return {begin, [this](std::byte* taken) { Give(taken); }};
  }

  /// Where those bytes lie, if they are ours.
  bool Has(const std::byte* place) const {
    const std::lock_guard lock(mutex_);
    auto after = pieces_.upper_bound(const_cast<std::byte*>(place));
    if (after == pieces_.begin()) return false;
    --after;
    return place < after->second.pages + after->second.size;
  }

  class Opened {
   public:
    explicit Opened(Memory& memory) : memory_(memory) { memory_.Open(); }
    ~Opened() { memory_.Close(); }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

   private:
    Memory& memory_;
  };

 private:
  void Give(std::byte* taken) {
    const std::lock_guard lock(mutex_);
    const auto piece = pieces_.find(taken);
    munmap(piece->second.pages - kPage, piece->second.size + 2 * kPage);
    pieces_.erase(piece);
  }

  void Open() {
    const std::lock_guard lock(mutex_);
    if (open_++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  void Close() {
    const std::lock_guard lock(mutex_);
    if (--open_ == 0) Protect(PROT_NONE);
  }

  void Protect(int protection) {
    for (const auto& [begin, piece] : pieces_) {
      CHECK(mprotect(piece.pages, piece.size, protection) == 0);
    }
  }

  struct Piece {
    std::byte* pages = nullptr;  // the first that opens
    std::size_t size = 0;        // of those that open
  };

  mutable std::mutex mutex_;
  std::map<std::byte*, Piece> pieces_;  // by where the memory given begins
  int open_ = 0;                        // queues that run something
};

/// Host memory that a queue reads when it gets there, not before.
class Pinned {
 public:
  std::shared_ptr<std::byte> Take(std::int64_t bytes) {
    auto* const memory = new std::byte[static_cast<std::size_t>(bytes)];
    const std::lock_guard lock(mutex_);
    pieces_[memory] = bytes;
    return {memory, [this](std::byte* taken) {
              const std::lock_guard give(mutex_);
              pieces_.erase(taken);
              delete[] taken;
            }};
  }
  bool Has(const std::byte* place) const {
    const std::lock_guard lock(mutex_);
    auto after = pieces_.upper_bound(const_cast<std::byte*>(place));
    if (after == pieces_.begin()) return false;
    --after;
    return place < after->first + after->second;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::byte*, std::int64_t> pieces_;
};

/// Called again and again until it returns true: done.
using Work = std::function<bool()>;
/// Makes the work of one launch.
using NewWork = std::function<Work()>;

class RecordedGraph : public GpuGraph {
 public:
  explicit RecordedGraph(std::deque<NewWork> work) : work_(std::move(work)) {}
  const std::deque<NewWork>& work() const { return work_; }

 private:
  std::deque<NewWork> work_;
};

class EmulatedMark : public GpuQueue::Mark {
 public:
  // Shared with the queue, which may pass it when it is gone.
  std::shared_ptr<std::chrono::steady_clock::time_point> passed =
      std::make_shared<std::chrono::steady_clock::time_point>();
};

class EmulatedQueue : public GpuQueue {
 public:
  EmulatedQueue(Memory& memory, const Pinned& pinned, FiberOrder order)
      : memory_(memory), pinned_(pinned), order_(order) {}
  ~EmulatedQueue() override { Synchronize(); }

  void Copy(std::byte* to, std::int64_t to_pitch, const std::byte* from, std::int64_t from_pitch,
            std::int64_t row_bytes, std::int64_t rows) override {
    const auto copy = [=](const std::byte* source, std::int64_t source_pitch) {
      for (std::int64_t r = 0; r < rows; ++r) {
        std::memmove(to + r * to_pitch, source + r * source_pitch,
                     static_cast<std::size_t>(row_bytes));
      }
    };
    const auto late = [this](const std::byte* place) {
      return memory_.Has(place) || pinned_.Has(place);
    };
    CHECK(!capturing_ || (late(from) && late(to)));
    if (late(from)) {
      Enqueue([=] { copy(from, from_pitch); });
      return;
    }
    // Host memory is read now.
    auto read =
        std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(row_bytes * rows));
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(read->data() + r * row_bytes, from + r * from_pitch,
                  static_cast<std::size_t>(row_bytes));
    }
    Enqueue([=] { copy(read->data(), row_bytes); });
  }

  void Fill(std::byte* to, std::uint8_t value, std::int64_t bytes) override {
    Enqueue([=] { std::memset(to, value, static_cast<std::size_t>(bytes)); });
  }

  void WaitFor(GpuQueue& other) override {
    CHECK(!capturing_);
    // The other may run ahead, never behind.
    EnqueueWork([&queue = static_cast<EmulatedQueue&>(other)] {
      return [&queue] { return queue.Advance(); };
    });
  }

  bool Done() override { return Advance(); }
  void Synchronize() override {
    while (!Advance()) sched_yield();
  }

  void BeginCapture() override {
    CHECK(!capturing_);
    capturing_ = true;
  }
  std::unique_ptr<GpuGraph> EndCapture() override {
    CHECK(capturing_);
    capturing_ = false;
    return std::make_unique<RecordedGraph>(std::exchange(recorded_, {}));
  }
  void Launch(const GpuGraph& graph) override {
    for (const NewWork& work : static_cast<const RecordedGraph&>(graph).work()) EnqueueWork(work);
  }

  std::unique_ptr<Mark> NewMark() override {
    auto mark = std::make_unique<EmulatedMark>();
    Enqueue([passed = mark->passed] { *passed = std::chrono::steady_clock::now(); });
    return mark;
  }
  double SecondsBetween(const Mark& from, const Mark& to) override {
    return std::chrono::duration<double>(*static_cast<const EmulatedMark&>(to).passed -
                                         *static_cast<const EmulatedMark&>(from).passed)
        .count();
  }

  void* handle() override { return this; }

  void Enqueue(std::function<void()> work) {
    EnqueueWork([work = std::move(work)]() -> Work {
      return [&work] {
        work();
        return true;
      };
    });
  }
  void EnqueueWork(NewWork work) { (capturing_ ? recorded_ : waiting_).push_back(std::move(work)); }
  FiberOrder order() const { return order_; }

 private:
  /// Runs what is enqueued, until something is not ready; true when nothing is left.
  bool Advance() {
    CHECK(!capturing_);
    // One piece of work may make another queue run this one's.
    if (running_ || waiting_.empty()) return true;
    const Memory::Opened open(memory_);
    running_ = true;
    while (!waiting_.empty()) {
      if (!current_) current_ = waiting_.front()();
      if (!current_()) break;
      current_ = nullptr;
      waiting_.pop_front();
    }
    running_ = false;
    return waiting_.empty();
  }

  Memory& memory_;
  const Pinned& pinned_;
  const FiberOrder order_;
  std::deque<NewWork> waiting_;
  Work current_;  // of the first one
  std::deque<NewWork> recorded_;
  bool capturing_ = false;
  bool running_ = false;
};

class EmulatedGpu : public Gpu {
 public:
  explicit EmulatedGpu(FiberOrder order) : order_(order) {}

  GpuInfo info() const override {
    return {.name = "emulated GPU",
            .uuid = "GPU-emulated",
            .compute_capability = 80,
            .multiprocessors = 2,
            .memory_bytes = kMemory,
            .free_bytes = kMemory,
            .cache_bytes = 1 << 20};
  }
  std::shared_ptr<std::byte> Allocate(std::int64_t bytes) override { return memory_.Take(bytes); }
  std::shared_ptr<std::byte> AllocatePinned(std::int64_t bytes) override {
    return pinned_.Take(bytes);
  }
  std::unique_ptr<GpuQueue> NewQueue() override {
    return std::make_unique<EmulatedQueue>(memory_, pinned_, order_);
  }

 private:
  const FiberOrder order_;
  Memory memory_;
  Pinned pinned_;
};

}  // namespace

void EnqueueGrid(const LaunchPlace& place, GridSize grid, unsigned threads,
                 std::size_t shared_bytes, std::function<void()> body) {
  auto& queue = static_cast<EmulatedQueue&>(place.stream.queue());
  queue.Enqueue([=, where = place.where, order = queue.order(), body = std::move(body)] {
    RunGrid(where, grid, threads, shared_bytes, order, body);
  });
}

void EnqueueHostWork(void* queue_handle, std::function<std::function<bool()>()> start) {
  static_cast<EmulatedQueue*>(queue_handle)->EnqueueWork(std::move(start));
}

std::unique_ptr<Gpu> OpenEmulatedGpu(FiberOrder order) {
  InstallGpuForms();
  return std::make_unique<EmulatedGpu>(order);
}

}  // namespace jubal

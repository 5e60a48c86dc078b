#include "tests/kernels/emulated_gpu/emulated_gpu.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>
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
constexpr std::int64_t kMemory = std::int64_t{8} << 30;

/// The memory of one GPU: closed to the host while nothing runs.
class Memory {
 public:
  std::shared_ptr<std::byte> Take(std::int64_t bytes) {
    if (bytes > kMemory) {
      throw UserError(ExitStatus::kConfig, "the emulated GPU does not give that much memory");
    }
    const auto size = static_cast<std::size_t>((bytes + kPage - 1) / kPage * kPage + kPage);
    void* memory =
        mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    const std::lock_guard lock(mutex_);
    auto* const begin = static_cast<std::byte*>(memory);
    pieces_[begin] = size;
    return {begin, [this](std::byte* taken) { Give(taken); }};
  }

  /// Where those bytes lie, if they are ours.
  bool Has(const std::byte* place) const {
    const std::lock_guard lock(mutex_);
    auto after = pieces_.upper_bound(const_cast<std::byte*>(place));
    if (after == pieces_.begin()) return false;
    --after;
    return place < after->first + after->second;
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
    munmap(piece->first, piece->second);
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
    for (const auto& [begin, size] : pieces_) {
      // The last page stays closed: an overrun ends there.
      CHECK(mprotect(begin, size - kPage, protection) == 0);
    }
  }

  mutable std::mutex mutex_;
  std::map<std::byte*, std::size_t> pieces_;
  int open_ = 0;  // queues that run something
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

using Work = std::function<void()>;

class RecordedGraph : public GpuGraph {
 public:
  explicit RecordedGraph(std::vector<Work> work) : work_(std::move(work)) {}
  const std::vector<Work>& work() const { return work_; }

 private:
  std::vector<Work> work_;
};

class Passed : public GpuQueue::Mark {
 public:
  std::chrono::steady_clock::time_point when;
};

class EmulatedQueue : public GpuQueue {
 public:
  EmulatedQueue(Memory& memory, const Pinned& pinned, FiberOrder order)
      : memory_(memory), pinned_(pinned), order_(order) {}
  ~EmulatedQueue() override { RunAll(); }

  void Copy(std::byte* to, std::int64_t to_pitch, const std::byte* from, std::int64_t from_pitch,
            std::int64_t row_bytes, std::int64_t rows) override {
    const auto copy = [=](const std::byte* source, std::int64_t source_pitch) {
      for (std::int64_t r = 0; r < rows; ++r) {
        std::memmove(to + r * to_pitch, source + r * source_pitch,
                     static_cast<std::size_t>(row_bytes));
      }
    };
    if (capturing_ || memory_.Has(from) || pinned_.Has(from)) {
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
    Enqueue([&queue = static_cast<EmulatedQueue&>(other)] { queue.RunAll(); });
  }

  bool Done() override {
    RunAll();
    return true;
  }
  void Synchronize() override { RunAll(); }

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
    for (const Work& work : static_cast<const RecordedGraph&>(graph).work()) Enqueue(work);
  }

  std::unique_ptr<Mark> NewMark() override {
    auto mark = std::make_unique<Passed>();
    mark->when = std::chrono::steady_clock::now();
    return mark;
  }
  double SecondsBetween(const Mark& from, const Mark& to) override {
    return std::chrono::duration<double>(static_cast<const Passed&>(to).when -
                                         static_cast<const Passed&>(from).when)
        .count();
  }

  void* handle() override { return this; }

  void Enqueue(Work work) { (capturing_ ? recorded_ : waiting_).push_back(std::move(work)); }
  FiberOrder order() const { return order_; }

 private:
  void RunAll() {
    CHECK(!capturing_);
    if (waiting_.empty()) return;
    const Memory::Opened open(memory_);
    // In place: one piece of work may make another queue run this one's.
    std::vector<Work> work = std::exchange(waiting_, {});
    for (const Work& piece : work) piece();
  }

  Memory& memory_;
  const Pinned& pinned_;
  const FiberOrder order_;
  std::vector<Work> waiting_;
  std::vector<Work> recorded_;
  bool capturing_ = false;
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

std::unique_ptr<Gpu> OpenEmulatedGpu(FiberOrder order) {
  InstallGpuForms();
  return std::make_unique<EmulatedGpu>(order);
}

}  // namespace jubal

#ifndef JUBAL_KERNELS_TASK_RANGES_H_
#define JUBAL_KERNELS_TASK_RANGES_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "kernels/check.h"

namespace jubal {

/// Tasks 0 … n − 1 for the threads of a parallel region. Each thread first walks through a range
/// of its own, so that it reads neighbouring weights in order; when that is done it takes the last
/// task of whoever has most left. Waits for nobody.
class TaskRanges {
 public:
  explicit TaskRanges(std::int64_t tasks, int threads)
      : slots_(static_cast<std::size_t>(std::clamp(threads, 1, kMostSlots))) {
    CHECK(tasks >= 0 && tasks <= INT32_MAX);
    const auto slots = static_cast<std::int64_t>(slots_);
    for (std::int64_t i = 0; i < slots; ++i) {
      ranges_[static_cast<std::size_t>(i)].left.store(
          Pack(tasks * i / slots, tasks * (i + 1) / slots), std::memory_order_relaxed);
    }
  }

  /// The next task for that thread; false when none is left.
  bool Take(int thread, std::int64_t& task) {
    std::atomic<std::uint64_t>& own = ranges_[static_cast<std::size_t>(thread) % slots_].left;
    std::uint64_t left = own.load(std::memory_order_relaxed);
    while (Begin(left) < End(left)) {
      if (own.compare_exchange_weak(left, Pack(Begin(left) + 1, End(left)),
                                    std::memory_order_relaxed)) {
        task = Begin(left);
        return true;
      }
    }
    return Steal(task);
  }

 private:
  static constexpr int kMostSlots = 256;  // more threads share slots
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> left{0};  // begin and end of a range
  };

  static std::uint64_t Pack(std::int64_t begin, std::int64_t end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
  }
  static std::int64_t Begin(std::uint64_t range) { return static_cast<std::int64_t>(range >> 32); }
  static std::int64_t End(std::uint64_t range) {
    return static_cast<std::int64_t>(range & 0xffffffffu);
  }

  bool Steal(std::int64_t& task) {
    while (true) {
      std::atomic<std::uint64_t>* victim = nullptr;
      std::uint64_t most = 0;
      for (std::size_t i = 0; i < slots_; ++i) {
        const std::uint64_t left = ranges_[i].left.load(std::memory_order_relaxed);
        if (End(left) - Begin(left) > End(most) - Begin(most)) {
          victim = &ranges_[i].left;
          most = left;
        }
      }
      if (victim == nullptr) return false;
      if (victim->compare_exchange_strong(most, Pack(Begin(most), End(most) - 1),
                                          std::memory_order_relaxed)) {
        task = End(most) - 1;
        return true;
      }
    }
  }

  std::size_t slots_;
  std::array<Slot, kMostSlots> ranges_;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_TASK_RANGES_H_

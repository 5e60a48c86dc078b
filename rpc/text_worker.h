#ifndef JUBAL_RPC_TEXT_WORKER_H_
#define JUBAL_RPC_TEXT_WORKER_H_

#include <array>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace jubal {

/// Two threads for work on texts, which takes too long for gRPC's threads: one for short texts, one
/// for long ones, so that nobody's short prompt waits for somebody's book.
class TextWorker {
 public:
  static constexpr std::size_t kShortBytes = std::size_t{64} << 10;
  static constexpr std::size_t kMaxWaiting = 256;  // jobs of either thread

  TextWorker();

  /// Runs what was accepted, then ends.
  ~TextWorker();

  /// Runs `job`, which must not throw, on a thread chosen by the size of its text. False, and the
  /// job is dropped, if too many wait already. Thread-safe.
  bool Run(std::size_t text_bytes, std::function<void()> job);

 private:
  class Lane {
   public:
    Lane();
    ~Lane();
    bool Run(std::function<void()> job);

   private:
    void Loop();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> jobs_;
    bool ending_ = false;
    std::thread thread_;
  };

  std::array<Lane, 2> lanes_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_TEXT_WORKER_H_

#include "rpc/text_worker.h"

#include <utility>

namespace jubal {

TextWorker::TextWorker() = default;
TextWorker::~TextWorker() = default;

bool TextWorker::Run(std::size_t text_bytes, std::function<void()> job) {
  return lanes_[text_bytes <= kShortBytes ? 0 : 1].Run(std::move(job));
}

TextWorker::Lane::Lane() : thread_([this] { Loop(); }) {}

TextWorker::Lane::~Lane() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

bool TextWorker::Lane::Run(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.size() == kMaxWaiting) return false;
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
  return true;
}

void TextWorker::Lane::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

}  // namespace jubal

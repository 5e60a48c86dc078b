#ifndef JUBAL_KERNELS_STREAM_H_
#define JUBAL_KERNELS_STREAM_H_

#include <memory>

#include "kernels/gpu.h"
#include "kernels/tensor.h"

namespace jubal {

/// An order of execution on one device. What is run on a stream sees the results of what was run on
/// it before. On the CPU a call returns when its work is done; on a GPU it enqueues and returns.
/// Owned by the thread that runs the engine; not thread-safe.
class Stream {
 public:
  /// Of the CPU.
  Stream() = default;
  /// Of that GPU, which must outlive the stream.
  explicit Stream(Gpu& gpu) : gpu_(&gpu), queue_(gpu.NewQueue()) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return gpu_ == nullptr ? Device::kCpu : Device::kCuda; }
  /// Both require a GPU's stream.
  Gpu& gpu() const {
    CHECK(gpu_ != nullptr);
    return *gpu_;
  }
  GpuQueue& queue() const {
    CHECK(gpu_ != nullptr);
    return *queue_;
  }

  /// Waits until all that was run on the stream is done.
  void Synchronize() {
    if (queue_ != nullptr) queue_->Synchronize();
  }

 private:
  Gpu* gpu_ = nullptr;
  std::unique_ptr<GpuQueue> queue_;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_STREAM_H_

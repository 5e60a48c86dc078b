#ifndef JUBAL_KERNELS_STREAM_H_
#define JUBAL_KERNELS_STREAM_H_

#include "kernels/tensor.h"

namespace jubal {

/// An order of execution on one device. What is run on a stream sees the results of what was run on
/// it before. On the CPU a call returns when its work is done; on a GPU it enqueues and returns.
/// Owned by the thread that runs the engine; not thread-safe.
class Stream {
 public:
  explicit Stream(Device device) : device_(device) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }

 private:
  Device device_;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_STREAM_H_

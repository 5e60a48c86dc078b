#ifndef JUBAL_PARALLEL_HOST_INTS_H_
#define JUBAL_PARALLEL_HOST_INTS_H_

#include <cstdint>
#include <vector>

#include "kernels/copy.h"
#include "kernels/run.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

/// Where the host reads and writes the integers of a tensor: there on the CPU, in a copy for one on
/// a GPU. Of i32 tensors, dense where they are written.
class HostInts {
 public:
  /// For tensors on that device, of at most so many elements.
  HostInts(Device device, std::int64_t elements)
      : copy_(device == Device::kCpu ? 0 : static_cast<std::size_t>(elements)) {}

  /// The elements of `tensor`. They are there when the stream has been waited for.
  ConstTensorView Read(ConstTensorView tensor, Stream& stream) {
    if (tensor.device() == Device::kCpu) return tensor;
    const TensorView copy = CopyOf(tensor.shape());
    Run(Copy{.out = copy, .x = tensor}, stream);
    return copy;
  }

  /// Where to write the elements of `tensor`; Write then brings them there.
  TensorView For(TensorView tensor) {
    return tensor.device() == Device::kCpu ? tensor : CopyOf(tensor.shape());
  }
  void Write(TensorView tensor, Stream& stream) {
    if (tensor.device() == Device::kCpu) return;
    Run(Copy{.out = tensor, .x = CopyOf(tensor.shape())}, stream);
  }

 private:
  TensorView CopyOf(Shape shape) {
    CHECK_LE(shape.elements(), static_cast<std::int64_t>(copy_.size()));
    return {reinterpret_cast<std::byte*>(copy_.data()), DType::kI32, shape};
  }

  std::vector<std::int32_t> copy_;
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_HOST_INTS_H_

#ifndef JUBAL_BENCHMARKS_KERNELS_CUDA_GPU_OPERANDS_H_
#define JUBAL_BENCHMARKS_KERNELS_CUDA_GPU_OPERANDS_H_

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/packed_matrix.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

/// Fills the operand on the GPU with random bytes, with floats in [−1, 1), or with bfloat16s of
/// ordinary size: products of zeros would run faster than any model does.
void FillRandomly(TensorView view, Stream& stream);
void FillWithFloats(TensorView view, Stream& stream);
void FillWithBfloat16s(TensorView view, Stream& stream);

/// Operands on a GPU, which live as long as this.
class GpuOperands {
 public:
  explicit GpuOperands(Stream& stream) : stream_(stream) {}

  TensorView Take(DType dtype, Shape shape) {
    memory_.push_back(stream_.gpu().Allocate(shape.elements() * SizeOf(dtype) + 64));
    return {memory_.back().get(), dtype, shape, Device::kCuda};
  }
  TensorView Floats(Shape shape) {
    const TensorView view = Take(DType::kF32, shape);
    FillWithFloats(view, stream_);
    return view;
  }
  TensorView Ints(const std::vector<std::int32_t>& values, Shape shape) {
    CHECK_EQ(static_cast<std::int64_t>(values.size()), shape.elements());
    const TensorView view = Take(DType::kI32, shape);
    stream_.queue().Copy(view.raw(), view.bytes(),
                         reinterpret_cast<const std::byte*>(values.data()), view.bytes(),
                         view.bytes(), 1);
    return view;
  }
  TensorView Bytes(std::int64_t bytes) { return Take(DType::kU8, {bytes}); }

  /// A matrix, or a stack of experts' matrices.
  PackedMatrix Weights(const MatrixLayout& layout) {
    const TensorView data = Bytes(layout.WeightBytes());
    const TensorView scales = Take(DType::kF32, {layout.ScaleBytes() / 4});
    if (HasScales(layout.type)) {
      FillRandomly(data, stream_);
      FillWithFloats(scales, stream_);
    } else if (layout.type == WeightType::kBf16) {
      FillWithBfloat16s(data, stream_);
    } else {
      FillWithFloats(data, stream_);
    }
    return {.layout = layout,
            .data = data.raw(),
            .scales = HasScales(layout.type) ? scales.data<float>() : nullptr,
            .device = Device::kCuda};
  }

 private:
  Stream& stream_;
  std::vector<std::shared_ptr<std::byte>> memory_;
};

}  // namespace jubal

#endif  // JUBAL_BENCHMARKS_KERNELS_CUDA_GPU_OPERANDS_H_

#include "kernels/add.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4 * kThreads;  // of one block

__global__ void __launch_bounds__(kThreads)
    AddRows(float* into, std::int64_t into_stride, const float* x, std::int64_t x_stride,
            std::int64_t hidden) {
  into += blockIdx.x * into_stride;
  x += blockIdx.x * x_stride;
  const std::int64_t begin = std::int64_t{blockIdx.y} * kColumns;
  const std::int64_t end = min(hidden, begin + kColumns);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) into[i] += x[i];
}

}  // namespace

void RunOnGpu(const Add& op, Stream& stream) {
  const std::int64_t hidden = op.into.size(1);
  Launch(stream, AddRows, dim3(Extent(op.into.size(0)), Extent(DivideUp(hidden, kColumns))),
         kThreads, 0, DeviceData<float>(op.into), op.into.row_stride(), DeviceData<float>(op.x),
         op.x.row_stride(), hidden);
}

}  // namespace jubal

#include "kernels/rms_norm.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;

struct Shared {
  double sums[kThreads / kWarp];
};

__global__ void __launch_bounds__(kThreads)
    NormRows(float* out, std::int64_t out_stride, const float* x, std::int64_t x_stride,
             const float* scale, std::int64_t hidden, float epsilon) {
  Shared& shared = BlockShared<Shared>();
  x += blockIdx.x * x_stride;
  out += blockIdx.x * out_stride;
  // In double each square is exact.
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < hidden; i += kThreads) {
    const double value = x[i];
    sum += value * value;
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, lanes);
  }
  if (threadIdx.x % kWarp == 0) shared.sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  double total = 0.0;
  for (const double part : shared.sums) total += part;
  const auto inverse =
      static_cast<float>(1.0 / sqrt(total / static_cast<double>(hidden) + epsilon));
  for (std::int64_t i = threadIdx.x; i < hidden; i += kThreads) out[i] = scale[i] * inverse * x[i];
}

}  // namespace

void RunOnGpu(const RmsNorm& op, Stream& stream) {
  Launch(stream, NormRows, Extent(op.x.size(0)), kThreads, sizeof(Shared),
         DeviceData<float>(op.out), op.out.row_stride(), DeviceData<float>(op.x), op.x.row_stride(),
         DeviceData<float>(op.scale), op.x.size(1), op.epsilon);
}

}  // namespace jubal

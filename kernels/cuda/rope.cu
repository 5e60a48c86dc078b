#include "kernels/rope.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/float_math.h"

namespace jubal {
namespace {

constexpr int kThreads = 64;
constexpr int kHeads = 4;  // of one block, which share the sines

__global__ void __launch_bounds__(kThreads)
    Rotate(float* heads, std::int64_t stride, std::int64_t columns, const std::int32_t* positions,
           const float* frequencies, std::int64_t half) {
  heads += blockIdx.x * stride;
  const auto position = static_cast<float>(positions[blockIdx.x]);
  const std::int64_t begin = blockIdx.y * kHeads * 2 * half;
  const std::int64_t end = min(columns, begin + kHeads * 2 * half);
  for (std::int64_t i = threadIdx.x; i < half; i += kThreads) {
    const SineCosine turn = FastSineCosine(position * frequencies[i]);
    for (std::int64_t head = begin; head < end; head += 2 * half) {
      const float a = heads[head + i];
      const float b = heads[head + half + i];
      heads[head + i] = a * turn.cosine - b * turn.sine;
      heads[head + half + i] = b * turn.cosine + a * turn.sine;
    }
  }
}

}  // namespace

void RunOnGpu(const Rope& op, Stream& stream) {
  const std::int64_t half = op.frequencies.size(0);
  const std::int64_t heads = op.heads.size(1) / (2 * half);
  Launch(stream, Rotate, dim3(Extent(op.heads.size(0)), Extent(DivideUp(heads, kHeads))), kThreads,
         0, DeviceData<float>(op.heads), op.heads.row_stride(), op.heads.size(1),
         DeviceData<std::int32_t>(op.positions), DeviceData<float>(op.frequencies), half);
}

}  // namespace jubal

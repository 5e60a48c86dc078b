#include "kernels/fill_drawn_tokens.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    Fill(std::int32_t* ids, std::int64_t tokens, const std::int32_t* drawn, std::int64_t draws) {
  const std::int64_t t = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= tokens || ids[t] >= 0) return;
  const std::int64_t draw = -1 - std::int64_t{ids[t]};
  if (draw >= draws) __trap();
  ids[t] = drawn[draw];
}

}  // namespace

void RunOnGpu(const FillDrawnTokens& op, Stream& stream) {
  const std::int64_t tokens = op.token_ids.size(0);
  Launch(stream, Fill, Extent(DivideUp(tokens, kThreads)), kThreads, 0,
         DeviceData<std::int32_t>(op.token_ids), tokens, DeviceData<std::int32_t>(op.drawn),
         op.drawn.size(0));
}

}  // namespace jubal

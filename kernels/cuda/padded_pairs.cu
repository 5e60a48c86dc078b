#include "kernels/padded_pairs.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kColumnsOfBlock = 1024;  // of a row, for each block

/// One pair's row, or a part of it.
__global__ void __launch_bounds__(kThreads)
    PackRows(float* out, const float* x, const std::int32_t* row_of, std::int64_t row_of_stride,
             int top_k, std::int64_t slots, std::int64_t n) {
  const std::int64_t token = blockIdx.x / static_cast<unsigned>(top_k);
  const int choice = static_cast<int>(blockIdx.x % static_cast<unsigned>(top_k));
  row_of += token * row_of_stride;
  const std::int32_t row = row_of[choice];
  if (row < 0) return;
  std::int64_t place = token * slots;
  for (int j = 0; j < choice; ++j) place += row_of[j] >= 0;
  x += row * n;
  out += place * n;
  const std::int64_t begin = blockIdx.y * kColumnsOfBlock;
  const std::int64_t end = min(begin + kColumnsOfBlock, n);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) out[i] = x[i];
}

__global__ void __launch_bounds__(kThreads)
    PlaceEach(std::int32_t* row_of, std::int64_t row_of_stride, const std::int32_t* ids,
              std::int64_t ids_stride, std::int64_t tokens, int top_k, std::int64_t experts,
              std::int64_t groups, std::int64_t slots) {
  const std::int64_t pair = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair >= tokens * top_k) return;
  const std::int64_t token = pair / top_k;
  const int choice = static_cast<int>(pair % top_k);
  ids += token * ids_stride;
  const std::int64_t group = ((ids[choice] + 1) * groups - 1) / experts;
  std::int64_t place = (group * tokens + token) * slots;
  for (int j = 0; j < choice; ++j) place += ((ids[j] + 1) * groups - 1) / experts == group;
  row_of[token * row_of_stride + choice] = static_cast<std::int32_t>(place);
}

}  // namespace

void RunOnGpu(const PackPairs& op, Stream& stream) {
  const std::int64_t n = op.x.size(1);
  const dim3 grid(Extent(op.row_of.shape().elements()), Extent(DivideUp(n, kColumnsOfBlock)));
  Launch(stream, PackRows, grid, kThreads, 0, DeviceData<float>(op.out), DeviceData<float>(op.x),
         DeviceData<std::int32_t>(op.row_of), op.row_of.row_stride(),
         static_cast<int>(op.row_of.size(1)), op.slots, n);
}

void RunOnGpu(const PlacePairs& op, Stream& stream) {
  const std::int64_t pairs = op.row_of.shape().elements();
  Launch(stream, PlaceEach, Extent(DivideUp(pairs, kThreads)), kThreads, 0,
         DeviceData<std::int32_t>(op.row_of), op.row_of.row_stride(),
         DeviceData<std::int32_t>(op.topk_ids), op.topk_ids.row_stride(), op.topk_ids.size(0),
         static_cast<int>(op.topk_ids.size(1)), op.experts, op.groups, op.slots);
}

}  // namespace jubal

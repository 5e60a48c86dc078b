#include "kernels/combine_experts.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4 * kThreads;  // of one block

struct Arguments {
  float* out;
  std::int64_t out_stride;
  const float* y;
  std::int64_t y_stride;
  std::int64_t y_rows;
  const std::int32_t* row_of;
  std::int64_t row_of_stride;
  const std::int32_t* topk_ids;
  std::int64_t topk_ids_stride;
  const float* topk_weights;
  std::int64_t topk_weights_stride;
  std::int64_t hidden;
  int top_k;
};

/// A token's choices in the order in which they are added up.
struct Shared {
  const float* rows[kThreads];
  float weights[kThreads];
};

__global__ void __launch_bounds__(kThreads) Combine(Arguments a) {
  Shared& shared = BlockShared<Shared>();
  const std::int64_t t = blockIdx.x;
  const int j = static_cast<int>(threadIdx.x);
  if (j < a.top_k) {
    const std::int32_t* ids = a.topk_ids + t * a.topk_ids_stride;
    int place = 0;
    for (int i = 0; i < a.top_k; ++i) place += ids[i] < ids[j] || (ids[i] == ids[j] && i < j);
    const std::int32_t row = a.row_of[t * a.row_of_stride + j];
    if (row < 0 || row >= a.y_rows) __trap();
    shared.rows[place] = a.y + row * a.y_stride;
    shared.weights[place] = a.topk_weights[t * a.topk_weights_stride + j];
  }
  __syncthreads();
  const std::int64_t begin = std::int64_t{blockIdx.y} * kColumns;
  const std::int64_t end = min(a.hidden, begin + kColumns);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float sum = shared.weights[0] * shared.rows[0][i];
    for (int place = 1; place < a.top_k; ++place) {
      sum += shared.weights[place] * shared.rows[place][i];
    }
    a.out[t * a.out_stride + i] = sum;
  }
}

}  // namespace

void RunOnGpu(const CombineExperts& op, Stream& stream) {
  const std::int64_t hidden = op.out.size(1);
  CHECK_LE(op.row_of.size(1), kThreads);
  Launch(stream, Combine, dim3(Extent(op.out.size(0)), Extent(DivideUp(hidden, kColumns))),
         kThreads, sizeof(Shared),
         {.out = DeviceData<float>(op.out),
          .out_stride = op.out.row_stride(),
          .y = DeviceData<float>(op.y),
          .y_stride = op.y.row_stride(),
          .y_rows = op.y.size(0),
          .row_of = DeviceData<std::int32_t>(op.row_of),
          .row_of_stride = op.row_of.row_stride(),
          .topk_ids = DeviceData<std::int32_t>(op.topk_ids),
          .topk_ids_stride = op.topk_ids.row_stride(),
          .topk_weights = DeviceData<float>(op.topk_weights),
          .topk_weights_stride = op.topk_weights.row_stride(),
          .hidden = hidden,
          .top_k = static_cast<int>(op.row_of.size(1))});
}

}  // namespace jubal

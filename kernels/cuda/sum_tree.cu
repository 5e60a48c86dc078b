#include "kernels/sum_tree.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4 * kThreads;  // of one block

/// The subtree that begins with each chunk; where none does, 0 chunks.
struct Partials {
  const float* data[kChunks] = {};
  std::int64_t strides[kChunks] = {};
  int num_chunks[kChunks] = {};
};

__global__ void __launch_bounds__(kThreads)
    AddUp(float* out, std::int64_t out_stride, Partials partials, std::int64_t n) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t begin = std::int64_t{blockIdx.y} * kColumns;
  const std::int64_t end = min(n, begin + kColumns);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float sums[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      sums[c] = partials.num_chunks[c] > 0 ? partials.data[c][row * partials.strides[c] + i] : 0.0f;
    }
#pragma unroll
    for (int size = 2; size <= kChunks; size *= 2) {
#pragma unroll
      for (int c = 0; c < kChunks; c += size) {
        // A partial that is this node or has it inside is there already.
        if (partials.num_chunks[c] < size) sums[c] += sums[c + size / 2];
      }
    }
    out[row * out_stride + i] = sums[0];
  }
}

}  // namespace

void RunOnGpu(const SumTree& op, Stream& stream) {
  Partials partials;
  for (std::size_t p = 0; p < op.partials.size(); ++p) {
    const int c = op.subtrees[p].first_chunk;
    partials.data[c] = DeviceData<float>(op.partials[p]);
    partials.strides[c] = op.partials[p].row_stride();
    partials.num_chunks[c] = op.subtrees[p].num_chunks;
  }
  const std::int64_t n = op.out.size(1);
  Launch(stream, AddUp, dim3(Extent(op.out.size(0)), Extent(DivideUp(n, kColumns))), kThreads, 0,
         DeviceData<float>(op.out), op.out.row_stride(), partials, n);
}

}  // namespace jubal

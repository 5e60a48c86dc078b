#include "kernels/permute.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kGroupThreads = 512;
constexpr int kGroupWarps = kGroupThreads / kWarp;
constexpr int kAhead = 4;  // ids that a lane loads at a time

struct GroupArguments {
  std::int32_t* offsets;
  std::int32_t* row_of;
  std::int64_t row_of_stride;
  std::int32_t* token_of;
  const std::int32_t* topk_ids;
  std::int64_t topk_ids_stride;
  unsigned pairs;
  unsigned top_k;
  std::int32_t first_expert;
  int experts;

  __device__ std::int32_t Id(unsigned pair) const {
    return topk_ids[pair / top_k * topk_ids_stride + pair % top_k];
  }
};

/// A warp looks through all pairs: calls visit(pair, lanes) of each 32 in order, where bit l of
/// `lanes` says whether pair + l goes to that expert.
template <class Visit>
__device__ void ForPairsOf(const GroupArguments& a, int expert, const Visit& visit) {
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned begin = 0; begin < a.pairs; begin += kAhead * kWarp) {
    bool here[kAhead];
#pragma unroll
    for (unsigned i = 0; i < kAhead; ++i) {
      const unsigned pair = begin + i * kWarp + lane;
      here[i] = pair < a.pairs && a.Id(pair) == a.first_expert + expert;
    }
#pragma unroll
    for (unsigned i = 0; i < kAhead; ++i) {
      visit(begin + i * kWarp, __ballot_sync(kFullWarp, here[i]));
    }
  }
}

/// One block: each warp has every 16th expert.
__global__ void __launch_bounds__(kGroupThreads) Group(GroupArguments a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int e = warp; e < a.experts; e += kGroupWarps) {
    int count = 0;
    ForPairsOf(a, e, [&](unsigned /*pair*/, unsigned lanes) { count += __popc(lanes); });
    if (lane == 0) a.offsets[e + 1] = count;
  }
  for (unsigned pair = threadIdx.x; pair < a.pairs; pair += kGroupThreads) {
    const std::int32_t local = a.Id(pair) - a.first_expert;
    if (local < 0 || local >= a.experts) {
      a.row_of[pair / a.top_k * a.row_of_stride + pair % a.top_k] = -1;
    }
  }
  __syncthreads();
  if (warp == 0) {
    if (lane == 0) a.offsets[0] = 0;
    int before = 0;
    for (int begin = 0; begin < a.experts; begin += kWarp) {
      const int e = begin + lane;
      int sum = e < a.experts ? a.offsets[e + 1] : 0;
      for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const int left = __shfl_up_sync(kFullWarp, sum, lanes);
        if (lane >= lanes) sum += left;
      }
      sum += before;
      if (e < a.experts) a.offsets[e + 1] = sum;
      before = __shfl_sync(kFullWarp, sum, kWarp - 1);
    }
  }
  __syncthreads();
  for (int e = warp; e < a.experts; e += kGroupWarps) {
    std::int32_t next = a.offsets[e];
    ForPairsOf(a, e, [&](unsigned first, unsigned lanes) {
      if ((lanes >> lane & 1u) != 0) {
        const unsigned pair = first + static_cast<unsigned>(lane);
        const std::int32_t row = next + __popc(lanes & ((1u << lane) - 1u));
        a.row_of[pair / a.top_k * a.row_of_stride + pair % a.top_k] = row;
        a.token_of[row] = static_cast<std::int32_t>(pair / a.top_k);
      }
      next += __popc(lanes);
    });
  }
}

constexpr int kGatherThreads = 256;
constexpr int kGatherWords = 4 * kGatherThreads;  // of one block

/// Rows are `words` long; those of x lie x_stride apart.
template <class Word>
__global__ void __launch_bounds__(kGatherThreads)
    Gather(Word* out, std::int64_t words, const Word* x, std::int64_t x_stride, std::int64_t x_rows,
           const std::int32_t* index, const std::int32_t* count) {
  const std::int64_t r = blockIdx.x;
  if (r >= *count) return;
  const std::int64_t from = index[r];
  if (from < 0 || from >= x_rows) __trap();
  const std::int64_t begin = std::int64_t{blockIdx.y} * kGatherWords;
  const std::int64_t end = min(words, begin + kGatherWords);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kGatherThreads) {
    out[r * words + i] = x[from * x_stride + i];
  }
}

template <class Word>
bool GatherWords(const GatherRows& op, Stream& stream) {
  constexpr std::int64_t kBytes = sizeof(Word);
  const std::int64_t size = SizeOf(op.x.dtype());
  const std::int64_t row_bytes = op.x.size(1) * size;
  const std::int64_t x_stride = op.x.row_stride() * size;
  CHECK(op.out.device() == Device::kCuda && op.x.device() == Device::kCuda);
  for (const auto places : {reinterpret_cast<std::uintptr_t>(op.out.raw()),
                            reinterpret_cast<std::uintptr_t>(op.x.raw()),
                            static_cast<std::uintptr_t>(row_bytes | x_stride)}) {
    if (places % kBytes != 0) return false;
  }
  const std::int64_t words = row_bytes / kBytes;
  const std::int64_t rows = std::min(op.out.size(0), op.index.size(0));
  Launch(stream, Gather<Word>, dim3(Extent(rows), Extent(DivideUp(words, kGatherWords))),
         kGatherThreads, 0, reinterpret_cast<Word*>(op.out.raw()), words,
         reinterpret_cast<const Word*>(op.x.raw()), x_stride / kBytes, op.x.size(0),
         DeviceData<std::int32_t>(op.index), DeviceData<std::int32_t>(op.count));
  return true;
}

}  // namespace

void RunOnGpu(const GroupByExpert& op, Stream& stream) {
  CHECK(op.experts.begin >= 0 && op.experts.end <= 0x7fffffff);
  Launch(stream, Group, 1, kGroupThreads, 0,
         {.offsets = DeviceData<std::int32_t>(op.offsets),
          .row_of = DeviceData<std::int32_t>(op.row_of),
          .row_of_stride = op.row_of.row_stride(),
          .token_of = DeviceData<std::int32_t>(op.token_of),
          .topk_ids = DeviceData<std::int32_t>(op.topk_ids),
          .topk_ids_stride = op.topk_ids.row_stride(),
          .pairs = Extent(op.topk_ids.shape().elements()),
          .top_k = Extent(op.topk_ids.size(1)),
          .first_expert = static_cast<std::int32_t>(op.experts.begin),
          .experts = static_cast<int>(op.experts.size())});
}

void RunOnGpu(const GatherRows& op, Stream& stream) {
  // In the widest words that all rows are made of.
  GatherWords<uint4>(op, stream) || GatherWords<std::uint32_t>(op, stream) ||
      GatherWords<std::uint8_t>(op, stream);
}

}  // namespace jubal

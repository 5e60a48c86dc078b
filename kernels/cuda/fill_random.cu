#include "kernels/fill_random.h"

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kWordsOfThread = 16;

/// Block (x, y) of the grid writes part x of 64-column block y of one chunk of one expert.
/// `stream`: of {key, expert, chunk}.
__global__ void __launch_bounds__(kThreads)
    FillBlocks(std::uint64_t* out, std::int64_t words, WeightType type, float deviation,
               std::uint64_t stream, std::int64_t first_block) {
  out += blockIdx.y * words;
  stream = RandomStream(stream, first_block + blockIdx.y);
  const std::int64_t begin = blockIdx.x * (kThreads * kWordsOfThread);
  for (std::int64_t i = begin + threadIdx.x; i < words && i < begin + kThreads * kWordsOfThread;
       i += kThreads) {
    out[i] = RandomWeights(type, deviation, stream, static_cast<std::uint64_t>(i));
  }
}

__global__ void __launch_bounds__(kThreads)
    FillScales(float* out, std::int64_t count, float value) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = value;
}

}  // namespace

void RunOnGpu(const FillRandom& op, Stream& stream) {
  const MatrixLayout& layout = op.layout;
  const Range blocks = layout.blocks();
  std::uint8_t* out = DeviceData<std::uint8_t>(op.data);
  for (std::int64_t expert = layout.experts.begin; expert < layout.experts.end; ++expert) {
    for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
      const std::int64_t words = layout.BlockBytes(chunk) / 8;
      constexpr std::int64_t kWordsOfBlock = kThreads * kWordsOfThread;
      constexpr std::int64_t kMostRows = 0xffff;  // of a grid
      for (std::int64_t first = blocks.begin; first < blocks.end; first += kMostRows) {
        const std::int64_t count = std::min(kMostRows, blocks.end - first);
        Launch(stream, FillBlocks, dim3(Extent(DivideUp(words, kWordsOfBlock)), Extent(count)),
               kThreads, 0, reinterpret_cast<std::uint64_t*>(out), words, layout.type,
               RandomDeviation(layout), RandomStream({op.key, expert, chunk}), first);
        out += count * words * 8;
      }
    }
  }
  if (op.scales.empty()) return;
  const std::int64_t count = op.scales.size(0);
  Launch(stream, FillScales, Extent(DivideUp(count, kThreads)), kThreads, 0,
         DeviceData<float>(op.scales), count, RandomScale(layout));
}

}  // namespace jubal

#include "benchmarks/kernels/cuda/gpu_operands.h"

#include <algorithm>

#include "kernels/cuda/device.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;

enum class Values { kBytes, kFloats, kBfloat16s };

__global__ void FillWords(std::uint32_t* to, std::int64_t count, Values values) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    // splitmix64
    std::uint64_t bits = static_cast<std::uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    auto word = static_cast<std::uint32_t>(bits ^ (bits >> 31));
    if (values == Values::kFloats) {
      word = __float_as_uint(static_cast<float>(static_cast<std::int32_t>(word)) * 0x1p-31f);
    } else if (values == Values::kBfloat16s) {
      word = (word & 0x807f807fu) | 0x3e803e80u;  // ±0.25 … ±0.5
    }
    to[i] = word;
  }
}

void Fill(TensorView view, Values values, Stream& stream) {
  const std::int64_t words = view.bytes() / 4;
  const std::int64_t blocks = std::min<std::int64_t>(
      (words + kThreads - 1) / kThreads, std::int64_t{stream.gpu().info().multiprocessors} * 8);
  Launch(stream, FillWords, Extent(blocks), kThreads, 0,
         reinterpret_cast<std::uint32_t*>(view.raw()), words, values);
}

}  // namespace

void FillRandomly(TensorView view, Stream& stream) { Fill(view, Values::kBytes, stream); }
void FillWithFloats(TensorView view, Stream& stream) { Fill(view, Values::kFloats, stream); }
void FillWithBfloat16s(TensorView view, Stream& stream) { Fill(view, Values::kBfloat16s, stream); }

}  // namespace jubal

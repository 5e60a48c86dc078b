#include "kernels/fill_random.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/check.h"

namespace jubal {

float RandomDeviation(const MatrixLayout& layout) {
  // Sums of K products get variance 1.
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(layout.k)));
}

float RandomScale(const MatrixLayout& layout) {
  // n = 256 or 16 values are equally frequent: their own deviation is √((n² − 1) / 12).
  return RandomDeviation(layout) / (layout.type == WeightType::kInt4 ? 4.61f : 73.9f);
}

void Check(const FillRandom& op) {
  CHECK(op.data.dtype() == DType::kU8);
  CHECK_EQ(op.data.bytes(), op.layout.WeightBytes());
  CHECK_EQ(op.scales.empty() ? 0 : op.scales.bytes(), op.layout.ScaleBytes());
}

void RunOnCpu(const FillRandom& op) {
  const MatrixLayout& layout = op.layout;
  const Range blocks = layout.blocks();
  const float deviation = RandomDeviation(layout);
#pragma omp parallel
  {
    std::byte* out = op.data.raw();
    for (std::int64_t expert = layout.experts.begin; expert < layout.experts.end; ++expert) {
      for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
        const std::int64_t bytes = layout.BlockBytes(chunk);
        const auto words = static_cast<std::uint64_t>(bytes) / sizeof(std::uint64_t);
#pragma omp for nowait
        for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
          const std::uint64_t stream = RandomStream({op.key, expert, chunk, block});
          std::byte* const to = out + (block - blocks.begin) * bytes;
          for (std::uint64_t i = 0; i < words; ++i) {
            const std::uint64_t word = RandomWeights(layout.type, deviation, stream, i);
            std::memcpy(to + i * sizeof(word), &word, sizeof(word));
          }
        }
        out += bytes * blocks.size();
      }
    }
  }
  if (!op.scales.empty()) {
    std::fill_n(op.scales.data<float>(), op.scales.size(0), RandomScale(layout));
  }
}

}  // namespace jubal

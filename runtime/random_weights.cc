#include "runtime/random_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/counter_random.h"
#include "runtime/memory_plan.h"

namespace jubal {
namespace {

/// Standard deviation of a matrix's elements: sums of K products get variance 1.
float Deviation(const MatrixLayout& layout) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(layout.k)));
}

/// For integers, whose n = 256 or 16 values are equally frequent: their own deviation is
/// √((n² − 1) / 12).
float ScaleOf(const MatrixLayout& layout) {
  return Deviation(layout) / (layout.type == WeightType::kInt4 ? 4.61f : 73.9f);
}

std::uint32_t LowHalf(std::uint64_t word) { return static_cast<std::uint32_t>(word); }
std::uint32_t HighHalf(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); }

/// Attention over many random keys is nearly a mean, the same for all tokens of a sequence. Scaled
/// up to 1 by the norm behind it, it would send them all to the same experts.
float NormScale(WeightRole role) { return role == WeightRole::kAttentionOutNorm ? 0.25f : 1.0f; }

/// One 64-column block of one chunk. A step of 4 bytes of 64 columns is whole words of 8 bytes.
void FillBlock(WeightType type, float deviation, std::uint64_t stream, std::byte* out,
               std::int64_t bytes) {
  const auto words = static_cast<std::uint64_t>(bytes) / sizeof(std::uint64_t);
  const auto bits_of = [deviation](std::uint32_t random) {
    return std::bit_cast<std::uint32_t>(deviation * UnitVariance(random));
  };
  for (std::uint64_t i = 0; i < words; ++i) {
    std::uint64_t word = RandomWord(stream, i);
    switch (type) {
      case WeightType::kInt8:
      case WeightType::kInt4:
        break;
      case WeightType::kBf16: {
        // The upper half of a float is a bf16; four of them, of 16 random bits each.
        std::uint64_t packed = 0;
        for (int shift = 0; shift < 64; shift += 16) {
          packed |= std::uint64_t{bits_of(LowHalf(word >> shift) << 16) >> 16} << shift;
        }
        word = packed;
        break;
      }
      case WeightType::kF32:
        word = std::uint64_t{bits_of(HighHalf(word))} << 32 | bits_of(LowHalf(word));
        break;
    }
    std::memcpy(out + i * sizeof(word), &word, sizeof(word));
  }
}

/// `weight` is the matrix's number in the list.
void FillMatrix(const MatrixLayout& layout, std::int64_t weight, const WeightMemory& memory) {
  const Range blocks = layout.blocks();
#pragma omp parallel
  {
    std::byte* out = memory.data.raw();
    for (std::int64_t expert = layout.experts.begin; expert < layout.experts.end; ++expert) {
      for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
        const std::int64_t bytes = layout.BlockBytes(chunk);
#pragma omp for nowait
        for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
          FillBlock(layout.type, Deviation(layout), RandomStream({weight, expert, chunk, block}),
                    out + (block - blocks.begin) * bytes, bytes);
        }
        out += bytes * blocks.size();
      }
    }
  }
  if (!memory.scales.empty()) {
    std::fill_n(memory.scales.data<float>(), memory.scales.size(0), ScaleOf(layout));
  }
}

}  // namespace

Weights RandomWeights(const ModelSource& source, const Mesh& mesh, Arena& arena,
                      const LoadProgress& progress) {
  Weights weights;
  const std::vector<WeightMemory> memory =
      TakeWeights(source, mesh.plan, mesh.seat, arena, weights);
  std::int64_t total = 0;
  for (const WeightMemory& one : memory) total += one.data.bytes();
  std::int64_t done = 0;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) {
      std::fill_n(memory[i].data.data<float>(), spec.k, NormScale(spec.role));
    } else {
      FillMatrix(MatrixOf(weights, spec).layout, static_cast<std::int64_t>(i), memory[i]);
    }
    done += memory[i].data.bytes();
    if (progress) progress({.done = done, .total = total});
  }
  return weights;
}

}  // namespace jubal

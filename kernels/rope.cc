#include "kernels/rope.h"

#include <algorithm>

#include "kernels/float_math.h"

namespace jubal {
namespace {

constexpr std::int64_t kBlock = 64;  // pairs whose sines are kept on the stack

void RotateToken(const Rope& op, float* heads, float position) {
  const std::int64_t half = op.frequencies.size(0);
  const float* frequencies = op.frequencies.data<float>();
  for (std::int64_t begin = 0; begin < half; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, half - begin);
    float cosines[kBlock];
    float sines[kBlock];
    for (std::int64_t i = 0; i < count; ++i) {
      const SineCosine turn = FastSineCosine(position * frequencies[begin + i]);
      cosines[i] = turn.cosine;
      sines[i] = turn.sine;
    }
    for (std::int64_t head = 0; head < op.heads.size(1); head += 2 * half) {
      float* low = heads + head + begin;
      float* high = low + half;
      for (std::int64_t i = 0; i < count; ++i) {
        const float a = low[i];
        const float b = high[i];
        low[i] = a * cosines[i] - b * sines[i];
        high[i] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

}  // namespace

void Check(const Rope& op) {
  CHECK(op.heads.dtype() == DType::kF32 && op.heads.rank() == 2);
  CHECK(op.positions.dtype() == DType::kI32 && op.positions.dense());
  CHECK(op.positions.shape() == (Shape{op.heads.size(0)}));
  CHECK(op.frequencies.dtype() == DType::kF32 && op.frequencies.rank() == 1);
  CHECK(op.frequencies.dense() && op.frequencies.size(0) > 0);
  CHECK_EQ(op.heads.size(1) % (2 * op.frequencies.size(0)), 0);
}

void RunOnCpu(const Rope& op) {
  const std::int64_t tokens = op.heads.size(0);
  const std::int32_t* positions = op.positions.data<std::int32_t>();
#pragma omp parallel for if (tokens > 4)
  for (std::int64_t t = 0; t < tokens; ++t) {
    RotateToken(op, op.heads.row<float>(t), static_cast<float>(positions[t]));
  }
}

}  // namespace jubal

#ifndef JUBAL_BENCHMARKS_KERNELS_OPERANDS_H_
#define JUBAL_BENCHMARKS_KERNELS_OPERANDS_H_

#include <cstdint>
#include <cstring>

#include <benchmark/benchmark.h>

#include "kernels/arena.h"
#include "kernels/cpu_limits.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

/// Random bytes: products of zeros would run faster than any model does.
inline void FillRandomly(TensorView view) {
  std::uint64_t state = 88172645463325252u;
  for (std::int64_t i = 0; i + 8 <= view.bytes(); i += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(view.raw() + i, &state, 8);
  }
}

/// Floats in [−1, 1).
inline void FillWithFloats(TensorView view) {
  FillRandomly(view);
  const std::int64_t count = view.bytes() / 4;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, view.raw() + i * 4, 4);
    const float value = static_cast<float>(bits) * 0x1p-31f;
    std::memcpy(view.raw() + i * 4, &value, 4);
  }
}

/// A matrix of one's own, or a stack of experts' matrices, with random weights of ordinary size.
class RandomWeights {
 public:
  explicit RandomWeights(const MatrixLayout& layout)
      : layout_(layout),
        arena_(ArenaBytes(layout.WeightBytes()) + ArenaBytes(layout.ScaleBytes())) {
    data_ = arena_.Take(DType::kU8, {layout.WeightBytes()});
    scales_ = arena_.Take(DType::kF32, {layout.ScaleBytes() / 4});
    if (HasScales(layout.type)) {
      FillRandomly(data_);
      for (std::int64_t i = 0; i < scales_.size(0); ++i) scales_.data<float>()[i] = 1e-3f;
    } else if (layout.type == WeightType::kF32) {
      FillWithFloats(data_);
    } else {
      FillRandomly(data_);
      for (std::int64_t i = 0; i < data_.bytes() / 2; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, data_.raw() + i * 2, 2);
        bits = static_cast<std::uint16_t>((bits & 0x807f) | 0x3e80);  // ±0.25 … ±0.5
        std::memcpy(data_.raw() + i * 2, &bits, 2);
      }
    }
  }

  PackedMatrix matrix() const {
    return {.layout = layout_,
            .data = data_.raw(),
            .scales = layout_.ScaleBytes() > 0 ? scales_.data<float>() : nullptr};
  }
  TensorView data() const { return data_; }

 private:
  MatrixLayout layout_;
  Arena arena_;
  TensorView data_;
  TensorView scales_;
};

/// Bytes and operations per second, and what share of the machine's limits, measured before and
/// after, that is.
class Limits {
 public:
  Limits(ConstTensorView memory, WeightType type)
      : memory_(memory),
        type_(type),
        bandwidth_(MeasureReadBandwidth(memory)),
        peak_(MeasurePeak(type)) {}

  /// Of one iteration each.
  void Report(benchmark::State& state, double bytes, double operations) const {
    const double bandwidth = (bandwidth_ + MeasureReadBandwidth(memory_)) / 2;
    const double peak = (peak_ + MeasurePeak(type_)) / 2;
    const auto iterations = static_cast<double>(state.iterations());
    using benchmark::Counter;
    state.counters["bytes"] = Counter(iterations * bytes, Counter::kIsRate, Counter::kIs1000);
    state.counters["of_read"] = Counter(iterations * bytes / bandwidth, Counter::kIsRate);
    state.counters["ops"] = Counter(iterations * operations, Counter::kIsRate, Counter::kIs1000);
    state.counters["of_peak"] = Counter(iterations * operations / peak, Counter::kIsRate);
  }

 private:
  ConstTensorView memory_;
  WeightType type_;
  double bandwidth_;
  double peak_;
};

inline std::int64_t GroupRowsOf(WeightType type, std::int64_t int8_rows) {
  return type == WeightType::kInt8 ? int8_rows : type == WeightType::kInt4 ? 64 : 0;
}

}  // namespace jubal

#endif  // JUBAL_BENCHMARKS_KERNELS_OPERANDS_H_

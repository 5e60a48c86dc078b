#ifndef JUBAL_TESTS_KERNELS_HOST_TENSOR_H_
#define JUBAL_TESTS_KERNELS_HOST_TENSOR_H_

#include <random>
#include <vector>

#include "kernels/tensor.h"

namespace jubal {

/// A tensor with elements of its own: what tests pass to operations.
template <class T>
class HostTensor {
 public:
  HostTensor(Shape shape, std::vector<T> values) : shape_(shape), values_(std::move(values)) {
    CHECK_EQ(static_cast<std::int64_t>(values_.size()), shape.elements());
  }
  explicit HostTensor(Shape shape, T fill = {})
      : HostTensor(shape, std::vector<T>(static_cast<std::size_t>(shape.elements()), fill)) {}

  TensorView view() { return {reinterpret_cast<std::byte*>(values_.data()), DTypeOf<T>(), shape_}; }
  ConstTensorView view() const {
    return {reinterpret_cast<const std::byte*>(values_.data()), DTypeOf<T>(), shape_};
  }
  std::vector<T>& values() { return values_; }
  const std::vector<T>& values() const { return values_; }
  T& operator[](std::int64_t i) { return values_[static_cast<std::size_t>(i)]; }
  const T& operator[](std::int64_t i) const { return values_[static_cast<std::size_t>(i)]; }

 private:
  Shape shape_;
  std::vector<T> values_;
};

using Floats = HostTensor<float>;
using Ints = HostTensor<std::int32_t>;

inline Floats RandomFloats(Shape shape, std::uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats floats(shape);
  for (float& value : floats.values()) value = normal(random);
  return floats;
}

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_HOST_TENSOR_H_

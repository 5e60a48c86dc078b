#ifndef JUBAL_KERNELS_TENSOR_H_
#define JUBAL_KERNELS_TENSOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <type_traits>

#include "kernels/check.h"

namespace jubal {

enum class DType : std::uint8_t { kU8, kI8, kI16, kI32, kI64, kF16, kBf16, kF32, kF64 };

std::int64_t SizeOf(DType type);  // bytes of one element
std::string_view NameOf(DType type);

/// Where memory lies, and so who may touch it.
enum class Device : std::uint8_t { kCpu, kCuda };

template <class T>
constexpr DType DTypeOf();
template <>
constexpr DType DTypeOf<std::uint8_t>() {
  return DType::kU8;
}
template <>
constexpr DType DTypeOf<std::int8_t>() {
  return DType::kI8;
}
template <>
constexpr DType DTypeOf<std::int16_t>() {
  return DType::kI16;
}
template <>
constexpr DType DTypeOf<std::int32_t>() {
  return DType::kI32;
}
template <>
constexpr DType DTypeOf<std::int64_t>() {
  return DType::kI64;
}
template <>
constexpr DType DTypeOf<float>() {
  return DType::kF32;
}

/// The sizes of up to four dimensions, slowest first.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes) {
    CHECK_LE(sizes.size(), std::size_t{kMaxRank});
    for (const std::int64_t size : sizes) {
      CHECK_GE(size, 0);
      sizes_[static_cast<std::size_t>(rank_++)] = size;
    }
  }

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return sizes_[static_cast<std::size_t>(i)]; }
  std::int64_t& operator[](int i) { return sizes_[static_cast<std::size_t>(i)]; }
  std::int64_t elements() const {
    std::int64_t product = 1;
    for (int i = 0; i < rank_; ++i) product *= (*this)[i];
    return product;
  }
  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// A typed window on memory that somebody else owns. Row-major: the inner dimensions are dense, and
/// `row_stride` elements lie between neighbours of the first one. Passed by value.
template <class Byte>  // std::byte, or const std::byte for a view that only reads
class BasicTensorView {
 public:
  BasicTensorView() = default;
  BasicTensorView(Byte* data, DType dtype, Shape shape, Device device = Device::kCpu)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {
    row_stride_ = 1;
    for (int i = 1; i < shape.rank(); ++i) row_stride_ *= shape[i];
  }
  /// A view that may write converts to one that only reads.
  template <class Other>
  requires std::is_same_v<const Other, Byte> BasicTensorView(
      const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data_(other.raw()),
        shape_(other.shape()),
        row_stride_(other.row_stride()),
        dtype_(other.dtype()),
        device_(other.device()) {}

  bool empty() const { return data_ == nullptr; }
  Byte* raw() const { return data_; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(int dimension) const { return shape_[dimension]; }
  int rank() const { return shape_.rank(); }
  std::int64_t row_stride() const { return row_stride_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool dense() const {
    std::int64_t inner = 1;
    for (int i = 1; i < shape_.rank(); ++i) inner *= shape_[i];
    return row_stride_ == inner;
  }
  std::int64_t bytes() const { return shape_.elements() * SizeOf(dtype_); }  // of the elements

  /// The elements as T, which must be the view's dtype. Row r starts at r · row_stride().
  template <class T>
  auto* data() const {
    CHECK(DTypeOf<T>() == dtype_);
    if constexpr (std::is_const_v<Byte>) {
      return reinterpret_cast<const T*>(data_);
    } else {
      return reinterpret_cast<T*>(data_);
    }
  }
  template <class T>
  auto* row(std::int64_t index) const {
    return data<T>() + index * row_stride_;
  }

  /// Rows [begin, begin + count) of the first dimension.
  BasicTensorView Rows(std::int64_t begin, std::int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= shape_[0]);
    BasicTensorView part = *this;
    part.data_ = data_ + begin * row_stride_ * SizeOf(dtype_);
    part.shape_[0] = count;
    return part;
  }
  /// Columns [begin, begin + count) of a matrix; keeps the row stride.
  BasicTensorView Columns(std::int64_t begin, std::int64_t count) const {
    CHECK_EQ(shape_.rank(), 2);
    CHECK(begin >= 0 && count >= 0 && begin + count <= shape_[1]);
    BasicTensorView part = *this;
    part.data_ = data_ + begin * SizeOf(dtype_);
    part.shape_[1] = count;
    return part;
  }
  /// The same elements under another shape. Requires a dense view.
  BasicTensorView Reshaped(Shape shape) const {
    CHECK(dense());
    CHECK_EQ(shape.elements(), shape_.elements());
    return BasicTensorView(data_, dtype_, shape, device_);
  }

 private:
  Byte* data_ = nullptr;
  Shape shape_;
  std::int64_t row_stride_ = 0;
  DType dtype_ = DType::kF32;
  Device device_ = Device::kCpu;
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

}  // namespace jubal

#endif  // JUBAL_KERNELS_TENSOR_H_

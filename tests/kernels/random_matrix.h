#ifndef JUBAL_TESTS_KERNELS_RANDOM_MATRIX_H_
#define JUBAL_TESTS_KERNELS_RANDOM_MATRIX_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "kernels/packed_matrix.h"

namespace jubal {

/// Zeroed bytes at a multiple of 64.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::int64_t size)
      : size_(size),
        data_(new (std::align_val_t{64}) std::byte[static_cast<std::size_t>(size)]{}) {}

  std::byte* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }

 private:
  struct Delete {
    void operator()(std::byte* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::int64_t size_;
  std::unique_ptr<std::byte[], Delete> data_;
};

/// A stack of random matrices [K, N] as a checkpoint holds them: one odd byte into its buffer,
/// since files align nothing.
class RandomMatrix {
 public:
  RandomMatrix(WeightType type, std::int64_t k, std::int64_t n, std::int64_t groups,
               std::int64_t experts = 1, bool output_major = false)
      : type_(type),
        k_(k),
        n_(n),
        group_rows_(GroupRows(type, (k + groups - 1) / groups)),
        output_major_(output_major) {
    std::mt19937 random(static_cast<unsigned>(k * 1000 + n * 8 + static_cast<int>(type)));
    std::normal_distribution<float> normal;
    const int most = type == WeightType::kInt4 ? 8 : 128;
    std::uniform_int_distribution<int> integer(-most, most - 1);
    data_.resize(static_cast<std::size_t>(1 + experts * MatrixBytes()));
    for (std::int64_t i = 0; i < experts * k * n; ++i) {
      std::byte* place = data_.data() + 1 + i * ElementBytes();
      if (HasScales(type)) {
        *place = static_cast<std::byte>(integer(random));
      } else {
        const auto bits = std::bit_cast<std::uint32_t>(normal(random));
        const std::uint32_t kept = type == WeightType::kF32 ? bits : bits >> 16;
        std::memcpy(place, &kept, static_cast<std::size_t>(ElementBytes()));
      }
    }
    if (!HasScales(type)) return;
    scales_.resize(static_cast<std::size_t>(1 + experts * Groups() * n * 2));
    for (std::int64_t i = 0; i < experts * Groups() * n; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(std::fabs(normal(random)) / 100) >> 16;
      std::memcpy(scales_.data() + 1 + i * 2, &bits, 2);
    }
  }

  std::int64_t Groups() const { return (k_ + group_rows_ - 1) / group_rows_; }

  MatrixLayout LayoutByOutput(Range columns, Range experts = {0, 1}) const {
    return {.type = type_,
            .split = Split::kByOutput,
            .k = k_,
            .n = n_,
            .group_rows = group_rows_,
            .experts = experts,
            .chunks = {0, 1},
            .columns = columns};
  }
  MatrixLayout LayoutByInput(Range chunks, Range experts = {0, 1}) const {
    return {.type = type_,
            .split = Split::kByInput,
            .k = k_,
            .n = n_,
            .group_rows = group_rows_,
            .experts = experts,
            .chunks = chunks,
            .columns = {0, n_}};
  }

  UnpackedMatrix Unpacked(std::int64_t expert = 0) const {
    return {.data = data_.data() + 1 + expert * MatrixBytes(),
            .output_major = output_major_,
            .scales = HasScales(type_) ? scales_.data() + 1 + expert * Groups() * n_ * 2 : nullptr};
  }

  /// The element as stored, without its scale.
  float Stored(std::int64_t expert, std::int64_t k, std::int64_t n) const {
    const std::int64_t index = output_major_ ? n * k_ + k : k * n_ + n;
    const std::byte* place = Unpacked(expert).data + index * ElementBytes();
    if (HasScales(type_)) return static_cast<float>(static_cast<std::int8_t>(*place));
    std::uint32_t bits = 0;
    std::memcpy(&bits, place, static_cast<std::size_t>(ElementBytes()));
    return std::bit_cast<float>(type_ == WeightType::kF32 ? bits : bits << 16);
  }
  float Scale(std::int64_t expert, std::int64_t group, std::int64_t n) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, Unpacked(expert).scales + (group * n_ + n) * 2, 2);
    return std::bit_cast<float>(bits << 16);
  }
  /// The weight that the element stands for.
  double Weight(std::int64_t expert, std::int64_t k, std::int64_t n) const {
    const double stored = Stored(expert, k, n);
    return HasScales(type_) ? stored * Scale(expert, k / group_rows_, n) : stored;
  }

 private:
  static std::int64_t GroupRows(WeightType type, std::int64_t wanted) {
    if (!HasScales(type)) return 0;
    return type == WeightType::kInt4 ? std::min(wanted, kMaxInt4GroupRows) : wanted;
  }
  std::int64_t ElementBytes() const { return HasScales(type_) ? 1 : 4 / RowsPerStep(type_); }
  std::int64_t MatrixBytes() const { return k_ * n_ * ElementBytes(); }

  WeightType type_;
  std::int64_t k_;
  std::int64_t n_;
  std::int64_t group_rows_;
  bool output_major_;
  std::vector<std::byte> data_;
  std::vector<std::byte> scales_;
};

/// A rank's share of a RandomMatrix, packed.
class PackedShare {
 public:
  PackedShare(const RandomMatrix& matrix, const MatrixLayout& layout)
      : layout_(layout), data_(layout.WeightBytes()), scales_(layout.ScaleBytes()) {
    for (std::int64_t expert = 0; expert < layout.num_experts(); ++expert) {
      PackMatrix(layout, expert, matrix.Unpacked(layout.experts.begin + expert), data_.data(),
                 reinterpret_cast<float*>(scales_.data()));
    }
  }

  PackedMatrix matrix() const {
    return {.layout = layout_,
            .data = data_.data(),
            .scales = reinterpret_cast<const float*>(scales_.data())};
  }

 private:
  MatrixLayout layout_;
  AlignedBytes data_;
  AlignedBytes scales_;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_RANDOM_MATRIX_H_

#include "runtime/checkpoint/stored_tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/check.h"

namespace jubal {

std::span<const std::byte> StoredTensor::bytes() const {
  const std::optional<std::size_t> length = StoredLength(shape, dtype);
  CHECK(length.has_value());
  const std::span<const std::byte> all = file->bytes();
  CHECK(offset <= all.size() && *length <= all.size() - offset);
  return all.subspan(offset, *length);
}

std::optional<std::size_t> StoredLength(std::span<const std::int64_t> shape, DType dtype) {
  std::int64_t product = SizeOf(dtype);
  for (const std::int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(product, size, &product)) return std::nullopt;
  }
  return static_cast<std::size_t>(product);
}

std::string ShapeText(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace jubal

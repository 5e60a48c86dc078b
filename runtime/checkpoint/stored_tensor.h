#ifndef JUBAL_RUNTIME_CHECKPOINT_STORED_TENSOR_H_
#define JUBAL_RUNTIME_CHECKPOINT_STORED_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"
#include "runtime/checkpoint/mapped_file.h"

namespace jubal {

/// No file format read here describes arrays of more dimensions.
inline constexpr std::size_t kMaxStoredRank = 8;

/// Where a file keeps an array and how: what a format's reader promises once it returns.
/// offset + length is at most the file's size, and length is product(shape) · SizeOf(dtype).
struct StoredArray {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::size_t offset = 0;  // of the first byte in the file
  std::size_t length = 0;  // bytes
};

/// A tensor where it lies in a file: its bytes are the file's, little-endian, row-major, and may
/// start at any (odd) address: copy, never cast.
struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::shared_ptr<const MappedFile> file;
  std::size_t offset = 0;  // of the first byte in the file

  std::span<const std::byte> bytes() const;
};

/// product(shape) · SizeOf(dtype); nothing for a negative size or a product past 2^63 - 1.
std::optional<std::size_t> StoredLength(std::span<const std::int64_t> shape, DType dtype);

/// Throws UserError (kBadData) naming the tensor if one of `values`, f32 or bf16, is infinite or
/// NaN.
void CheckFinite(const StoredTensor& tensor, std::span<const std::byte> values, DType dtype);

/// A file's text for a message: in quotes, so escaped that it cannot drive a terminal (what is not
/// printable ASCII as \xNN), and cut to 80 bytes.
std::string Quoted(std::string_view text);

/// "[6144, 8]", for messages.
std::string ShapeText(std::span<const std::int64_t> shape);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_STORED_TENSOR_H_

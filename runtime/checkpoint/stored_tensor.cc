#include "runtime/checkpoint/stored_tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>

#include "kernels/check.h"
#include "kernels/error.h"

namespace jubal {
namespace {

/// Whether no exponent among f32 (as words of 4 bytes) or bf16 (of 2) is that of an infinity or
/// NaN.
template <class Word>
bool AllFinite(std::span<const std::byte> values) {
  constexpr Word kExponent = sizeof(Word) == 4 ? 0x7f800000 : 0x7f80;
  bool finite = true;
  for (std::size_t i = 0; i + sizeof(Word) <= values.size(); i += sizeof(Word)) {
    Word word = 0;
    std::memcpy(&word, values.data() + i, sizeof word);
    finite &= (word & kExponent) != kExponent;
  }
  return finite;
}

}  // namespace

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

void CheckFinite(const StoredTensor& tensor, std::span<const std::byte> values, DType dtype) {
  if (dtype == DType::kBf16 ? AllFinite<std::uint16_t>(values) : AllFinite<std::uint32_t>(values)) {
    return;
  }
  throw UserError(ExitStatus::kBadData,
                  fmt::format("{}: {} holds a value that is not finite: the file is damaged",
                              tensor.file->path().string(), tensor.name));
}

// Not fmt's {:?}: fmt 9 reads past the end of a string that ends inside a UTF-8 sequence.
std::string Quoted(std::string_view text) {
  constexpr std::size_t kShown = 80;
  std::string quoted = "\"";
  for (const char c : text.substr(0, kShown)) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c >= ' ' && c <= '~') {
      quoted += c;
    } else {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return quoted + (text.size() > kShown ? "\"..." : "\"");
}

std::string ShapeText(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace jubal

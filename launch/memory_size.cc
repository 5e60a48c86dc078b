#include "launch/memory_size.h"

#include <array>
#include <charconv>
#include <utility>

#include <fmt/format.h>

namespace jubal {
namespace {

constexpr std::array<std::pair<std::string_view, std::int64_t>, 10> kUnits{{
    {"", 1},
    {"B", 1},
    {"kB", 1'000},
    {"KB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"TB", 1'000'000'000'000},
    {"MiB", std::int64_t{1} << 20},
    {"GiB", std::int64_t{1} << 30},
    {"TiB", std::int64_t{1} << 40},
}};

}  // namespace

std::optional<std::int64_t> ParseMemorySize(std::string_view text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [unit, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return std::nullopt;
  for (const auto& [name, factor] : kUnits) {
    if (name != std::string_view(unit, static_cast<std::size_t>(end - unit))) continue;
    // A double holds whole numbers only up to 2^53.
    std::int64_t whole = 0;
    const auto [whole_end, whole_error] = std::from_chars(text.data(), unit, whole);
    if (whole_end == unit) {
      std::int64_t bytes = 0;
      if (whole_error != std::errc() || __builtin_mul_overflow(whole, factor, &bytes)) {
        return std::nullopt;
      }
      return bytes;
    }
    const double bytes = number * static_cast<double>(factor);
    if (bytes >= 0x1p63) return std::nullopt;
    return static_cast<std::int64_t>(bytes);
  }
  return std::nullopt;
}

std::string MemorySizeText(std::int64_t bytes) {
  constexpr std::array kNames{"bytes", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} bytes", bytes);
  auto size = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (size >= 999.95 && unit + 1 < kNames.size()) {
    size /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f} {}", size, kNames[unit]);
}

}  // namespace jubal

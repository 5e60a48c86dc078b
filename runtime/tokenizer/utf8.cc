#include "runtime/tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>

namespace jubal {
namespace {

struct LeadByte {
  std::size_t size;  // of the code point; 0: not a lead byte
  std::uint8_t second_min = 0x80;
  std::uint8_t second_max = 0xBF;
};

LeadByte Classify(std::uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// How many bytes of `text` agree with the code point that its first byte announces.
std::size_t AgreeingBytes(std::string_view text, const LeadByte& lead) {
  const std::size_t end = std::min(lead.size, text.size());
  std::size_t i = std::min<std::size_t>(1, end);
  for (; i < end; ++i) {
    const auto byte = static_cast<std::uint8_t>(text[i]);
    const std::uint8_t min = i == 1 ? lead.second_min : 0x80;
    const std::uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) break;
  }
  return i;
}

}  // namespace

std::size_t Utf8CodePointSize(std::string_view text) {
  if (text.empty()) return 0;
  const LeadByte lead = Classify(static_cast<std::uint8_t>(text[0]));
  return AgreeingBytes(text, lead) == lead.size ? lead.size : 0;
}

bool IsCutOffCodePoint(std::string_view text) {
  if (text.empty()) return false;
  const LeadByte lead = Classify(static_cast<std::uint8_t>(text[0]));
  return text.size() < lead.size && AgreeingBytes(text, lead) == text.size();
}

std::size_t WellFormedUtf8Size(std::string_view text) {
  std::size_t offset = 0;
  while (const std::size_t size = Utf8CodePointSize(text.substr(offset))) offset += size;
  return offset;
}

}  // namespace jubal

#ifndef JUBAL_RUNTIME_TOKENIZER_UTF8_H_
#define JUBAL_RUNTIME_TOKENIZER_UTF8_H_

#include <cstddef>
#include <string_view>

namespace jubal {

/// Bytes of the code point that begins `text`; 0 if none does, because `text` is empty, cut off
/// or ill-formed (RFC 3629: no surrogates, no overlong forms, nothing past U+10FFFF).
std::size_t Utf8CodePointSize(std::string_view text);

/// Whether `text` is the beginning of a code point that more bytes could complete. An empty text
/// is not.
bool IsCutOffCodePoint(std::string_view text);

/// Offset of the first byte that is not part of a well-formed code point; text.size() if all are.
std::size_t WellFormedUtf8Size(std::string_view text);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TOKENIZER_UTF8_H_

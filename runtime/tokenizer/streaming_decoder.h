#ifndef JUBAL_RUNTIME_TOKENIZER_STREAMING_DECODER_H_
#define JUBAL_RUNTIME_TOKENIZER_STREAMING_DECODER_H_

#include <string>

#include "runtime/token.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

/// Decodes tokens one by one. The texts it returns, joined, are what Tokenizer::Decode makes of
/// all tokens at once; each is UTF-8 in itself. Not thread-safe.
class StreamingDecoder {
 public:
  /// Keeps a reference to `tokenizer`. If the tokens continue a text, such as a prompt, their
  /// first space is kept, since it separates words; a text of its own does without it.
  StreamingDecoder(const Tokenizer& tokenizer, bool continues_text);

  /// The text that is certain after `token` (>= 0): empty while a code point is incomplete.
  std::string Append(TokenId token);

  /// What was held back at the end of the tokens: U+FFFD for each byte of a code point that was
  /// never completed.
  std::string Finish();

 private:
  std::string TakeBytes(bool at_end);

  const Tokenizer* tokenizer_;
  bool drops_leading_space_;
  std::string bytes_;  // held back: at most the first bytes of one code point
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TOKENIZER_STREAMING_DECODER_H_

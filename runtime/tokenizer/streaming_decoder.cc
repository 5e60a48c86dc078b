#include "runtime/tokenizer/streaming_decoder.h"

#include <string_view>

#include "runtime/tokenizer/utf8.h"

namespace jubal {
namespace {

constexpr std::string_view kReplacementCharacter = "\uFFFD";

}  // namespace

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool continues_text)
    : tokenizer_(&tokenizer),
      drops_leading_space_(!continues_text &&
                           tokenizer.leading_space() != Tokenizer::LeadingSpace::kKept) {}

std::string StreamingDecoder::Append(TokenId token) {
  if (tokenizer_->IsByte(token)) {
    bytes_ += tokenizer_->PieceText(token);
    drops_leading_space_ = false;
    return TakeBytes(/*at_end=*/false);
  }
  std::string text = TakeBytes(/*at_end=*/true);  // bytes combine with bytes only
  std::string_view piece = tokenizer_->PieceText(token);
  if (drops_leading_space_ && tokenizer_->HasLeadingSpace(token)) {
    piece.remove_prefix(1);
    drops_leading_space_ = tokenizer_->leading_space() == Tokenizer::LeadingSpace::kAllDropped;
  }
  if (!piece.empty()) drops_leading_space_ = false;
  text += piece;
  return text;
}

std::string StreamingDecoder::Finish() { return TakeBytes(/*at_end=*/true); }

std::string StreamingDecoder::TakeBytes(bool at_end) {
  std::string text;
  std::string_view rest = bytes_;
  while (!rest.empty() && (at_end || !IsCutOffCodePoint(rest))) {
    if (const std::size_t size = Utf8CodePointSize(rest); size > 0) {
      text += rest.substr(0, size);
      rest.remove_prefix(size);
    } else {
      text += kReplacementCharacter;
      rest.remove_prefix(1);
    }
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  return text;
}

}  // namespace jubal

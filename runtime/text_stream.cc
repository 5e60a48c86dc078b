#include "runtime/text_stream.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace jubal {

TextStream::StopMatcher::StopMatcher(std::string pattern)
    : pattern_(std::move(pattern)), borders_(pattern_.size()) {
  CHECK(!pattern_.empty());
  for (std::size_t i = 1, border = 0; i < pattern_.size(); ++i) {
    while (border > 0 && pattern_[border] != pattern_[i]) border = borders_[border - 1];
    if (pattern_[border] == pattern_[i]) ++border;
    borders_[i] = border;
  }
}

void TextStream::StopMatcher::Advance(char byte) {
  while (matched_ > 0 && pattern_[matched_] != byte) matched_ = borders_[matched_ - 1];
  if (pattern_[matched_] == byte) ++matched_;
}

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
                       bool continues_text) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, continues_text);
  for (std::string& stop : stop_strings) matchers_.emplace_back(std::move(stop));
}

TextStream::Delta TextStream::Append(TokenId token) {
  CHECK(!ended_);
  if (!decoder_) return {};
  return Feed(decoder_->Append(token));
}

std::string TextStream::Finish() {
  if (ended_ || !decoder_) return {};
  const Delta last = Feed(decoder_->Finish());
  ended_ = true;
  return last.stopped ? last.text : last.text + std::exchange(held_back_, {});
}

TextStream::Delta TextStream::Feed(std::string_view text) {
  std::string open = std::exchange(held_back_, {});
  std::size_t held = open.size();  // bytes at the end of `open` that a stop string begins with
  for (const char byte : text) {
    open += byte;
    held = 0;
    std::size_t stop = 0;  // bytes of the longest stop string that is complete
    for (StopMatcher& matcher : matchers_) {
      matcher.Advance(byte);
      held = std::max(held, matcher.matched());
      if (matcher.complete()) stop = std::max(stop, matcher.matched());
    }
    if (stop > 0) {
      ended_ = true;
      open.resize(open.size() - stop);
      return {std::move(open), true};
    }
  }
  held_back_ = open.substr(open.size() - held);
  open.resize(open.size() - held);
  return {std::move(open), false};
}

}  // namespace jubal

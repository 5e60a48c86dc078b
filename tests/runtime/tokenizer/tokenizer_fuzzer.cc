// Input: two bytes of length, a text of that length, then a model file.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/text_stream.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"

namespace jubal {
namespace {

void Try(std::string_view model, std::string_view text) {
  const Tokenizer tokenizer = Tokenizer::FromBytes(model, "fuzz");

  // Any token sequence decodes, to UTF-8.
  std::vector<TokenId> any;
  for (const char byte : text) any.push_back(static_cast<std::uint8_t>(byte));
  const std::string decoded = tokenizer.Decode(any);
  CHECK_EQ(WellFormedUtf8Size(decoded), decoded.size());

  std::string streamed;
  TextStream stream(&tokenizer, {"ab", "\u00e9"}, /*continues_text=*/false);
  bool stopped = false;
  for (std::size_t i = 0; i < any.size() && !stopped; ++i) {
    TextStream::Delta delta = stream.Append(any[i]);
    streamed += delta.text;
    stopped = delta.stopped;
  }
  streamed += stream.Finish();
  CHECK(decoded.starts_with(streamed));

  // Any text encodes, to tokens of text.
  const std::vector<TokenId> tokens = tokenizer.Encode(text);
  for (const TokenId token : tokens) {
    CHECK(token >= 0 && token < tokenizer.vocabulary_size() && !tokenizer.IsControl(token));
  }
  CHECK_LE(tokens.size(), text.size() * 3 + 3);
  tokenizer.Decode(tokens);
}

}  // namespace
}  // namespace jubal

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::size_t text_size = data[0] + std::size_t{256} * data[1];
  const std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  try {
    jubal::Try(rest.substr(std::min(text_size, rest.size())), rest.substr(0, text_size));
  } catch (const jubal::UserError&) {
    return 0;  // refused
  }
  return 0;
}

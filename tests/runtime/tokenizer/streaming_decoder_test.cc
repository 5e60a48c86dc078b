#include "runtime/tokenizer/streaming_decoder.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/tokenizer/utf8.h"
#include "tests/runtime/tokenizer/oracle.h"
#include "tests/runtime/tokenizer/tiny_model.h"

namespace jubal {
namespace {

using Tokens = std::vector<TokenId>;

// Ids 3 to 258: the bytes from 0; then these pieces.
constexpr TokenId kByte = 3;
constexpr TokenId kA = 259;
constexpr TokenId kSpaceA = 260;
constexpr TokenId kEnd = 2;

Tokenizer Bytes() {
  TinyModel model;
  model.AddBytes()
      .AddAll({"a", "\u2581a"})
      .proto.mutable_normalizer_spec()
      ->set_add_dummy_prefix(true);
  return model.Build();
}

std::vector<std::string> Stream(const Tokenizer& tokenizer, const Tokens& tokens,
                                bool continues_text = false) {
  StreamingDecoder decoder(tokenizer, continues_text);
  std::vector<std::string> texts;
  for (const TokenId token : tokens) texts.push_back(decoder.Append(token));
  texts.push_back(decoder.Finish());
  return texts;
}

std::string Join(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += text;
  return all;
}

using Strings = std::vector<std::string>;

// If this fails, a client that joins the parts of a streamed answer gets another text than one
// that asks for the whole.
TEST(StreamingDecoderTest, PartsAreUtf8AndJoinToTheWholeText) {
  const Tokenizer tokenizer = DemoTokenizer();
  const nlohmann::json oracle = DemoOracle();
  for (const char* kind : {"texts", "sequences"}) {
    for (const auto& entry : oracle[kind]) {
      const Strings parts = Stream(tokenizer, entry["tokens"].get<Tokens>());
      EXPECT_EQ(Join(parts), entry["decoded"].get<std::string>()) << entry["tokens"];
      for (const std::string& part : parts) EXPECT_EQ(WellFormedUtf8Size(part), part.size());
    }
  }
}

TEST(StreamingDecoderTest, HoldsACodePointBackUntilItIsComplete) {
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xF0, kByte + 0x9F, kByte + 0x98, kByte + 0x80, kA}),
            (Strings{"", "", "", "\U0001F600", "a", ""}));
}

TEST(StreamingDecoderTest, ReplacesEachByteOutsideACodePoint) {
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xE2, kByte + 0x96, kA}),
            (Strings{"", "", "\uFFFD\uFFFDa", ""}));
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xE2, kByte + 0xC3, kByte + 0xA9, kByte + 0x80}),
            (Strings{"", "\uFFFD", "\u00e9", "\uFFFD", ""}));
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xE2, kByte + 0x96}), (Strings{"", "", "\uFFFD\uFFFD"}));
}

// Bytes that only together could be a surrogate or an overlong form are known to be wrong early.
TEST(StreamingDecoderTest, HoldsNothingBackInVain) {
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xED, kByte + 0xA0}), (Strings{"", "\uFFFD\uFFFD", ""}));
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xC0}), (Strings{"\uFFFD", ""}));
}

TEST(StreamingDecoderTest, ControlTokensAreSilentAndEndACodePoint) {
  EXPECT_EQ(Stream(Bytes(), {kByte + 0xC3, kEnd, kByte + 0xA9, kEnd}),
            (Strings{"", "\uFFFD", "\uFFFD", "", ""}));
}

// If this fails, an answer sticks to its prompt: "Callme" instead of "Call me".
TEST(StreamingDecoderTest, KeepsTheFirstSpaceAfterAPrompt) {
  EXPECT_EQ(Stream(Bytes(), {kSpaceA, kSpaceA}, true), (Strings{" a", " a", ""}));
  EXPECT_EQ(Stream(Bytes(), {kSpaceA, kSpaceA}, false), (Strings{"a", " a", ""}));
}

TEST(StreamingDecoderTest, PromptAndContinuationReadAsOneText) {
  const Tokenizer tokenizer = DemoTokenizer();
  const std::string text = "Call me Ishmael.  Some years ago\u2014never mind how long\n\n";
  const Tokens tokens = tokenizer.Encode(text);
  for (std::size_t cut = 1; cut <= tokens.size(); ++cut) {
    if (cut < tokens.size() && tokenizer.IsByte(tokens[cut])) continue;
    const auto middle = tokens.begin() + static_cast<std::ptrdiff_t>(cut);
    const Tokens prompt(tokens.begin(), middle);
    const Tokens rest(middle, tokens.end());
    EXPECT_EQ(tokenizer.Decode(prompt) + Join(Stream(tokenizer, rest, true)), text);
  }
}

}  // namespace
}  // namespace jubal

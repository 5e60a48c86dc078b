#include "runtime/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "tests/runtime/tokenizer/tiny_model.h"

namespace jubal {
namespace {

using Strings = std::vector<std::string>;

// Pieces that overlap one another; ids from 3.
Tokenizer Pieces() {
  TinyModel model;
  model.AddBytes().AddAll(
      {"a", "b", "ab", "ba", "aab", "abab", "\u2581", "\u2581b", "\u00e9", "\u00e8a"});
  return model.Build();
}

TokenId Byte(int byte) { return 3 + byte; }

// The token whose text this is.
TokenId Token(const Tokenizer& tokenizer, std::string_view text) {
  TokenId token = 3 + 256;
  while (tokenizer.PieceText(token) != text) {
    if (++token == tokenizer.vocabulary_size()) throw std::logic_error("no such piece");
  }
  return token;
}

struct Result {
  Strings parts;  // one for each token taken, and one for the end
  bool stopped = false;

  std::string text() const {
    std::string all;
    for (const std::string& part : parts) all += part;
    return all;
  }
};

Result Stream(const Tokenizer& tokenizer, const std::vector<TokenId>& tokens, Strings stops) {
  TextStream stream(&tokenizer, std::move(stops));
  Result result;
  for (const TokenId token : tokens) {
    TextStream::Delta delta = stream.Append(token);
    result.parts.push_back(std::move(delta.text));
    result.stopped = delta.stopped;
    if (result.stopped) break;
  }
  result.parts.push_back(stream.Finish());
  return result;
}

Result Stream(const Strings& pieces, Strings stops) {
  const Tokenizer tokenizer = Pieces();
  std::vector<TokenId> tokens;
  for (const std::string& piece : pieces) tokens.push_back(Token(tokenizer, piece));
  return Stream(tokenizer, tokens, std::move(stops));
}

TEST(TextStreamTest, PassesTextOnAtOnce) {
  const Result result = Stream({"a", " b", " "}, {});
  EXPECT_EQ(result.parts, (Strings{"a", " b", " ", ""}));
  EXPECT_FALSE(result.stopped);
}

// If this fails, a model without a tokenizer cannot be served at all.
TEST(TextStreamTest, HasNoTextWithoutATokenizer) {
  TextStream stream(nullptr, {"a"});
  const TextStream::Delta delta = stream.Append(7);
  EXPECT_EQ(delta.text, "");
  EXPECT_FALSE(delta.stopped);
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStreamTest, EndTokensHaveNoText) {
  const Tokenizer tokenizer = Pieces();
  EXPECT_EQ(Stream(tokenizer, {Token(tokenizer, "a"), *tokenizer.eos()}, {}).text(), "a");
}

// If these fail, an answer shows the beginning of its stop string, or all of it.
TEST(TextStreamTest, EndsBeforeAStopStringWithinAToken) {
  const Result result = Stream({"abab"}, {"ba"});
  EXPECT_EQ(result.parts, (Strings{"a", ""}));
  EXPECT_TRUE(result.stopped);
}

TEST(TextStreamTest, EndsBeforeAStopStringAcrossTokens) {
  const Result result = Stream({"a", "b", "a", "a", "b"}, {"baab"});
  EXPECT_EQ(result.parts, (Strings{"a", "", "", "", "", ""}));
  EXPECT_TRUE(result.stopped);
}

TEST(TextStreamTest, ReleasesWhatTurnsOutNotToStop) {
  const Result result = Stream({"a", "b", " b"}, {"abc"});
  EXPECT_EQ(result.parts, (Strings{"", "", "ab b", ""}));
  EXPECT_FALSE(result.stopped);
}

TEST(TextStreamTest, ReleasesAtTheEndWhatNeverStopped) {
  const Result result = Stream({"a", "b"}, {"aba"});
  EXPECT_EQ(result.parts, (Strings{"", "", "ab"}));
  EXPECT_FALSE(result.stopped);
}

TEST(TextStreamTest, HoldsBackTheRestOfAFailedBeginning) {
  const Result result = Stream({"ab", "ab", "b"}, {"ababa"});
  EXPECT_EQ(result.parts, (Strings{"", "", "ababb", ""}));
  EXPECT_EQ(Stream({"ab", "ab", "aab"}, {"abaa"}).text(), "ab");
}

TEST(TextStreamTest, TakesTheStopStringThatIsCompleteFirst) {
  EXPECT_EQ(Stream({"aab", " b"}, {"aab b", "b"}).text(), "aa");
  EXPECT_EQ(Stream({"aab"}, {"b", "aab", "ab"}).text(), "");
}

TEST(TextStreamTest, StopsAtCodePointsOfSeveralBytes) {
  EXPECT_EQ(Stream({"a", "\u00e8a", "\u00e9", "a"}, {"\u00e9"}).parts,
            (Strings{"a", "\u00e8a", "", ""}));
  const Tokenizer tokenizer = Pieces();
  const Result result = Stream(tokenizer, {Byte('x'), Byte(0xC3), Byte(0xA9)}, {"\u00e9"});
  EXPECT_EQ(result.parts, (Strings{"x", "", "", ""}));
  EXPECT_TRUE(result.stopped);
}

TEST(TextStreamTest, EndsBeforeAStopStringThatTheEndCompletes) {
  const Tokenizer tokenizer = Pieces();
  EXPECT_EQ(Stream(tokenizer, {Byte('x'), Byte(0xC3)}, {"x\uFFFD"}).text(), "");
}

TEST(TextStreamDeathTest, TakesNothingOnceStopped) {
  const Tokenizer tokenizer = Pieces();
  TextStream stream(&tokenizer, {"a"});
  EXPECT_TRUE(stream.Append(Token(tokenizer, "a")).stopped);
  EXPECT_EQ(stream.Finish(), "");
  EXPECT_DEATH(stream.Append(Token(tokenizer, "a")), "check failed");
}

// The text before the stop string that ends first (the longest of those that end there).
std::string BeforeTheFirstStop(const std::string& text, const Strings& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

// If this fails, where an answer ends depends on how the model happened to cut it into tokens.
TEST(TextStreamTest, AgreesWithSearchingTheWholeText) {
  const Tokenizer tokenizer = Pieces();
  std::mt19937 random(3);
  const auto below = [&](std::size_t n) { return random() % n; };
  int stopped = 0;
  for (int round = 0; round < 20'000; ++round) {
    Strings stops;
    for (std::size_t i = below(4); i > 0; --i) {
      std::string stop;
      for (std::size_t j = 1 + below(6); j > 0; --j) {
        static const Strings kParts = {"a", "b", "a", "b", " ", "\u00e9", "\uFFFD"};
        stop += kParts[below(kParts.size())];
      }
      stops.push_back(stop);
    }
    std::vector<TokenId> tokens;
    for (std::size_t i = below(12); i > 0; --i) {
      static const std::vector<TokenId> kBytes = {Byte('a'), Byte(0xC3), Byte(0xA9), 1};
      const bool piece = below(4) > 0;
      tokens.push_back(piece ? static_cast<TokenId>(3 + 256 + below(10)) : kBytes[below(4)]);
    }
    StreamingDecoder decoder(tokenizer, /*continues_text=*/true);
    std::string whole;
    for (const TokenId token : tokens) whole += decoder.Append(token);
    whole += decoder.Finish();

    const Result result = Stream(tokenizer, tokens, stops);
    ASSERT_EQ(result.text(), BeforeTheFirstStop(whole, stops)) << "in '" << whole << "'";
    stopped += result.stopped ? 1 : 0;
  }
  EXPECT_GT(stopped, 2'000);
}

// If this fails, a long answer takes time in proportion to its square.
TEST(TextStreamTest, HoldsBackNoMoreThanAStopString) {
  const Tokenizer tokenizer = Pieces();
  const TokenId a = Token(tokenizer, "a");
  const std::string stop = std::string(1000, 'a') + "b";
  TextStream stream(&tokenizer, {stop});
  std::size_t size = 0;
  for (std::size_t i = 1; i <= 200'000; ++i) {
    size += stream.Append(a).text.size();
    ASSERT_EQ(size, i - std::min<std::size_t>(i, 1000));
  }
  const TextStream::Delta last = stream.Append(Token(tokenizer, "b"));
  EXPECT_TRUE(last.stopped);
  EXPECT_EQ(size + last.text.size(), 199'000u);
}

}  // namespace
}  // namespace jubal

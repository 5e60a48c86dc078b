#include "rpc/token_log.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/runtime/tokenizer/tiny_model.h"

namespace jubal {
namespace {

// Ids: a 3, b 4, c 5, ab 6, é's two bytes are tokens 7 + 0xC3 and 7 + 0xA9.
Tokenizer Letters() {
  TinyModel model;
  model.AddAll({"a", "b", "c", "ab"}).AddBytes();
  return model.Build();
}

constexpr TokenId kByte = 7;

GenerationEvent Token(TokenId token, std::optional<FinishReason> finish = {}) {
  return {1, {}, token, -0.5f * static_cast<float>(token), finish};
}

// If this fails, a client that reads slowly loses tokens or text, or gets some twice.
TEST(TokenLogTest, DeltasJoinToTheWholeHoweverTheyAreTaken) {
  const Tokenizer tokenizer = Letters();
  const std::vector<TokenId> tokens = {3, 4, kByte + 0xC3, kByte + 0xA9, 5, 6};
  for (std::size_t every = 1; every <= tokens.size(); ++every) {
    TokenLog log(&tokenizer, {});
    std::string text;
    std::vector<TokenId> taken;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool last = i + 1 == tokens.size();
      log.Append(1, Token(tokens[i], last ? std::optional(FinishReason::kLength) : std::nullopt));
      if ((i + 1) % every != 0 && !last) continue;
      ASSERT_TRUE(log.has_delta());
      const OutputDelta delta = log.TakeDelta();
      EXPECT_EQ(delta.first_index, static_cast<std::int64_t>(taken.size()));
      for (const LoggedToken& token : delta.tokens) {
        EXPECT_EQ(token.logprob, -0.5f * static_cast<float>(token.token));
        taken.push_back(token.token);
      }
      text += delta.text;
      EXPECT_EQ(delta.finish.has_value(), last);
    }
    EXPECT_EQ(text, "abécab");
    EXPECT_EQ(taken, tokens);
    EXPECT_FALSE(log.has_delta());
  }
}

// If this fails, a client sees part of a stop string, or half a code point.
TEST(TokenLogTest, TextIsHeldBackUntilItIsCertain) {
  const Tokenizer tokenizer = Letters();
  TokenLog log(&tokenizer, {"bca"});
  log.Append(1, Token(6));
  EXPECT_EQ(log.TakeDelta().text, "a");
  log.Append(1, Token(5));
  EXPECT_EQ(log.TakeDelta().text, "");
  EXPECT_FALSE(log.finish());
  log.Append(1, Token(3));
  const OutputDelta delta = log.TakeDelta();
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(delta.finish, FinishReason::kStop);
  EXPECT_TRUE(log.stopped_by_text());
  EXPECT_EQ(log.size(), 3);
}

// If this fails, an answer loses its last words because they might have become a stop string.
TEST(TokenLogTest, TheEndReleasesWhatWasHeldBack) {
  const Tokenizer tokenizer = Letters();
  TokenLog log(&tokenizer, {"bca"});
  log.Append(1, Token(6));
  log.Append(1, Token(5, FinishReason::kLength));
  EXPECT_EQ(log.TakeDelta().text, "abc");
  EXPECT_FALSE(log.stopped_by_text());
}

// If this fails, a server without a tokenizer cannot serve token ids.
TEST(TokenLogTest, WorksWithoutATokenizer) {
  TokenLog log(nullptr, {});
  log.Append(1, Token(9));
  log.Append(2, Token(8, FinishReason::kStop));
  EXPECT_EQ(log[0].epoch, 1u);
  EXPECT_EQ(log[1].epoch, 2u);
  const OutputDelta delta = log.TakeDelta();
  EXPECT_EQ(delta.tokens.size(), 2u);
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(delta.finish, FinishReason::kStop);
}

// If this fails, an end without a token (nothing was to be generated) never reaches the client.
TEST(TokenLogTest, AnEndAloneIsADelta) {
  TokenLog log(nullptr, {});
  EXPECT_FALSE(log.has_delta());
  GenerationEvent event;
  event.finish = FinishReason::kLength;
  log.Append(1, event);
  EXPECT_TRUE(log.has_delta());
  EXPECT_EQ(log.TakeDelta().finish, FinishReason::kLength);
  EXPECT_FALSE(log.has_delta());
}

}  // namespace
}  // namespace jubal

#include "runtime/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/tokenizer/oracle.h"
#include "tests/runtime/tokenizer/tiny_model.h"

namespace jubal {
namespace {

using Tokens = std::vector<TokenId>;
using Piece = TinyModel::Piece;

// If these fail, the model reads or writes something else than it was trained on.
TEST(TokenizerTest, EncodesAndDecodesAsSentencePieceDoes) {
  const Tokenizer tokenizer = DemoTokenizer();
  const nlohmann::json oracle = DemoOracle();
  ASSERT_GE(oracle["texts"].size(), 300u);
  for (const auto& entry : oracle["texts"]) {
    const auto text = entry["text"].get<std::string>();
    const Tokens tokens = tokenizer.Encode(text);
    EXPECT_EQ(tokens, entry["tokens"].get<Tokens>()) << text;
    EXPECT_EQ(tokenizer.Decode(tokens), entry["decoded"].get<std::string>()) << text;
  }
}

TEST(TokenizerTest, DecodesAnyTokensAsSentencePieceDoes) {
  const Tokenizer tokenizer = DemoTokenizer();
  const nlohmann::json oracle = DemoOracle();
  ASSERT_GE(oracle["sequences"].size(), 250u);
  for (const auto& entry : oracle["sequences"]) {
    EXPECT_EQ(tokenizer.Decode(entry["tokens"].get<Tokens>()), entry["decoded"].get<std::string>())
        << entry["tokens"];
  }
}

TEST(TokenizerTest, KnowsTheDemoModelsSpecialTokens) {
  const Tokenizer tokenizer = DemoTokenizer();
  EXPECT_EQ(tokenizer.vocabulary_size(), 4096);
  EXPECT_EQ(tokenizer.pad(), 0);
  EXPECT_EQ(tokenizer.bos(), 1);
  EXPECT_EQ(tokenizer.eos(), 2);
  EXPECT_EQ(tokenizer.unk(), 3);
  for (TokenId token = 0; token < tokenizer.vocabulary_size(); ++token) {
    EXPECT_EQ(tokenizer.IsControl(token), token < 3);
    EXPECT_EQ(tokenizer.IsByte(token), token >= 54 && token < 310);
    EXPECT_EQ(tokenizer.PieceText(token).empty(), token < 3);
  }
  EXPECT_EQ(tokenizer.PieceText(54 + 0xE2), "\xE2");
}

// If this fails, a request that samples one of a model's padding rows ends the server.
TEST(TokenizerTest, TakesIdsPastItsPiecesForTokensWithoutText) {
  const Tokenizer tokenizer = TinyModel().AddAll({"a"}).Build();
  EXPECT_EQ(tokenizer.Decode(Tokens{3, 4, 1'000'000, 3}), "aa");
}

TEST(TokenizerTest, HasNoSpecialTokensThatTheModelDoesNotDefine) {
  TinyModel model;
  model.proto.mutable_trainer_spec()->set_eos_piece("<end>");
  model.proto.mutable_trainer_spec()->set_bos_piece("<unk>");
  const Tokenizer tokenizer = model.Build();
  EXPECT_EQ(tokenizer.bos(), std::nullopt);
  EXPECT_EQ(tokenizer.eos(), std::nullopt);
  EXPECT_EQ(tokenizer.pad(), std::nullopt);
}

// If this fails, a user can forge the tokens that separate a conversation's turns.
TEST(TokenizerTest, NeverMakesControlTokensOfText) {
  const Tokenizer tokenizer =
      TinyModel().AddAll({"<s", "s>"}).Add("#", 0, Piece::CONTROL).AddBytes().Build();
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode("<s></s><unk>#<0x41>")), "<s></s><unk>#<0x41>");
  for (const TokenId token : tokenizer.Encode("<s></s><unk>#<0x41>")) {
    EXPECT_FALSE(tokenizer.IsControl(token));
  }
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = DemoTokenizer();
  const std::vector<std::string> faults = {
      "\x80", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
      "\xF8", "\xC3",     "\xE2\x96",     "\xF0\x9F\x98", "\xFF"};
  for (const std::string& fault : faults) {
    const std::string text = "caf\u00e9" + fault;
    ExpectUserError(ExitStatus::kBadData, [&] { tokenizer.Encode(text); }, {"UTF-8", "byte 5"});
    ExpectUserError(ExitStatus::kBadData, [&] { tokenizer.Encode(text + "a"); }, {"byte 5"});
  }
}

TEST(TokenizerTest, ReturnsEveryTextFromItsTokens) {
  const Tokenizer tokenizer = DemoTokenizer();
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (std::size_t i = random() % 30; i > 0; --i) {
      static const std::vector<std::string> kParts = {" ",
                                                      "the ",
                                                      "\n",
                                                      "\t\t",
                                                      "7",
                                                      "Whale",
                                                      "\u00e9",
                                                      "\u4e2d",
                                                      "\U0001F600",
                                                      "<|mask|>",
                                                      std::string(1, '\0')};
      text += kParts[random() % kParts.size()];
    }
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
  }
}

TEST(TokenizerTest, EncodesAMegabyteOfOneWord) {
  const Tokenizer tokenizer = DemoTokenizer();
  std::string text;
  while (text.size() < 1'000'000) text += "whale ";
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
}

// The options below occur in the models of other families. If these fail, such a model gets
// tokens that it was not trained on.
TEST(TokenizerOptionsTest, MergesBestScoresFirst) {
  const Tokenizer tokenizer =
      TinyModel().AddAll({"a", "b", "c"}).Add("ab", -2).Add("bc", -1).Build();
  EXPECT_EQ(tokenizer.Encode("abc"), (Tokens{3, 7}));
}

TEST(TokenizerOptionsTest, MakesOneUnknownTokenOfARun) {
  const Tokenizer tokenizer = TinyModel().AddAll({"a"}).Build();
  EXPECT_EQ(tokenizer.Encode("xyaz"), (Tokens{0, 3, 0}));
  EXPECT_EQ(tokenizer.Decode(Tokens{0, 3}), " \u2047 a");
}

TEST(TokenizerOptionsTest, MakesOneUnknownTokenOfARunWithAnUnusedPiece) {
  EXPECT_EQ(TinyModel().Add("yz", 0, Piece::UNUSED).Build().Encode("xyzw"), Tokens{0});
}

TEST(TokenizerOptionsTest, TakesUnusedPiecesApart) {
  TinyModel model;
  model.AddAll({"a", "b", "c"}).Add("ab", -1, Piece::UNUSED).Add("abc", -2, Piece::UNUSED);
  EXPECT_EQ(model.Build().Encode("abc"), (Tokens{3, 4, 5}));
  EXPECT_EQ(model.Add("abcabc", -3).Build().Encode("abcabcab"), (Tokens{8, 3, 4}));
}

TEST(TokenizerOptionsTest, DoesWithoutUnusedCharacters) {
  const Tokenizer tokenizer = TinyModel().Add("x", 0, Piece::UNUSED).AddAll({"a"}).Build();
  EXPECT_EQ(tokenizer.Encode("xa"), (Tokens{0, 4}));
}

TEST(TokenizerOptionsTest, MatchesTheLongestUserDefinedPieceAndFreezesIt) {
  const Tokenizer tokenizer = TinyModel()
                                  .AddAll({"a", "b", "ba", "aa", "xa"})
                                  .AddAll({"x", "xab", "xabab", "y"}, Piece::USER_DEFINED)
                                  .Build();
  EXPECT_EQ(tokenizer.Encode("xabaab"), (Tokens{9, 6, 4}));
  EXPECT_EQ(tokenizer.Encode("xababa"), (Tokens{10, 3}));
  EXPECT_EQ(tokenizer.Encode("xaxab"), (Tokens{8, 3, 9}));
  EXPECT_EQ(tokenizer.Encode("x"), (Tokens{8}));
}

TEST(TokenizerOptionsTest, PutsASpaceBeforeTheTextAndDropsItAgain) {
  TinyModel model;
  model.AddAll({"a", "\u2581", "\u2581a"})
      .proto.mutable_normalizer_spec()
      ->set_add_dummy_prefix(true);
  const Tokenizer tokenizer = model.Build();
  EXPECT_EQ(tokenizer.Encode(""), Tokens());
  EXPECT_EQ(tokenizer.Encode("a a"), (Tokens{5, 5}));
  EXPECT_EQ(tokenizer.Encode(" "), (Tokens{4, 4}));
  EXPECT_EQ(tokenizer.Decode(Tokens{5, 5}), "a a");
  EXPECT_EQ(tokenizer.Decode(Tokens{4, 4}), " ");
  EXPECT_EQ(tokenizer.Decode(Tokens{1, 5}), "a");
}

TEST(TokenizerOptionsTest, RemovesExtraSpaces) {
  TinyModel model;
  model.AddAll({"a", "\u2581"}).proto.mutable_normalizer_spec()->set_remove_extra_whitespaces(true);
  EXPECT_EQ(model.Build().Encode("  a   a  "), (Tokens{3, 4, 3}));
  EXPECT_EQ(model.Build().Encode("   "), Tokens());
  EXPECT_EQ(model.Build().Decode(Tokens{4, 4, 3, 4, 4, 3}), "a  a");
}

TEST(TokenizerOptionsTest, LeavesSpacesAsTheyAre) {
  TinyModel model;
  model.AddAll({"a", " "});
  model.proto.mutable_normalizer_spec()->set_escape_whitespaces(false);
  model.proto.mutable_normalizer_spec()->set_add_dummy_prefix(true);
  EXPECT_EQ(model.Build().Encode("a a"), (Tokens{4, 3, 4, 3}));
  EXPECT_EQ(model.Build().Decode(Tokens{4, 3}), " a");
}

// If these fail, a broken or foreign file ends the server instead of naming itself.
TEST(TokenizerFileTest, NamesAFileThatCannotBeRead) {
  for (const char* path : {"no/such/tokenizer.model", "."}) {
    ExpectUserError(ExitStatus::kNoInput, [&] { Tokenizer::FromFile(path); }, {path});
  }
}

TEST(TokenizerFileTest, RefusesWhatIsNoModel) {
  const std::string model = TinyModel().AddAll({"a", "b"}).Bytes();
  for (const std::string& bytes : {std::string(), std::string("{\"model\": 1}"),
                                   model.substr(0, model.size() - 1), std::string(100, '\xFF')}) {
    ExpectUserError(ExitStatus::kBadData, [&] { Tokenizer::FromBytes(bytes, "some.model"); },
                    {"some.model"});
  }
}

TEST(TokenizerFileTest, RefusesModelsThatMakeNoSense) {
  struct Fault {
    std::function<void(TinyModel&)> edit;
    std::string says;
  };
  const std::vector<Fault> faults = {
      {[](TinyModel& m) { m.Add("a"); }, "piece 4 repeats piece 3"},
      {[](TinyModel& m) { m.Add("<s>"); }, "piece 4 repeats piece 1"},
      {[](TinyModel& m) { m.Add(""); }, "piece 4 is empty"},
      {[](TinyModel& m) { m.Add("\xE2\x96"); }, "piece 4 is not UTF-8"},
      {[](TinyModel& m) { m.Add("b", std::numeric_limits<float>::quiet_NaN()); }, "piece 4"},
      {[](TinyModel& m) { m.Add("b", std::numeric_limits<float>::infinity()); }, "piece 4"},
      {[](TinyModel& m) { m.Add("b", 0, Piece::UNKNOWN); }, "pieces 0 and 4"},
      {[](TinyModel& m) { m.proto.mutable_pieces(0)->set_type(Piece::NORMAL); }, "unknown"},
      {[](TinyModel& m) { m.Add("<0x41>", 0, Piece::BYTE); }, "byte_fallback"},
      {[](TinyModel& m) { m.AddBytes().Add("<0x4G>", 0, Piece::BYTE); }, "names no byte"},
      {[](TinyModel& m) { m.AddBytes().Add("<0x4a>", 0, Piece::BYTE); }, "names no byte"},
      {[](TinyModel& m) { m.proto.mutable_trainer_spec()->set_byte_fallback(true); }, "256"},
      {[](TinyModel& m) { m.AddBytes().proto.mutable_pieces()->RemoveLast(); }, "255"},
      {[](TinyModel& m) { m.proto.mutable_trainer_spec()->set_unk_surface("\xFF"); }, "UTF-8"},
      {[](TinyModel& m) { m.proto.mutable_trainer_spec()->clear_model_type(); }, "UNIGRAM"},
      {[](TinyModel& m) { m.proto.clear_trainer_spec(); }, "cut off"},
      {[](TinyModel& m) { m.proto.mutable_trainer_spec()->set_treat_whitespace_as_suffix(true); },
       "treat_whitespace_as_suffix"},
      {[](TinyModel& m) {
         m.proto.mutable_normalizer_spec()->set_name("nmt_nfkc");
         m.proto.mutable_normalizer_spec()->set_precompiled_charsmap("map");
       },
       "nmt_nfkc"},
      {[](TinyModel& m) { m.proto.mutable_denormalizer_spec()->set_precompiled_charsmap("map"); },
       "denormalizer"},
  };
  for (const Fault& fault : faults) {
    TinyModel model;
    model.Add("a");
    EXPECT_NO_THROW(model.Build());
    fault.edit(model);
    ExpectUserError(ExitStatus::kBadData, [&] { model.Build(); }, {"tiny.model", fault.says});
  }
}

TEST(TokenizerFileTest, RefusesTooManyPieces) {
  TinyModel model;
  for (int i = 0; i < 1 << 20; ++i) model.Add(fmt::format("{}", i));
  ExpectUserError(ExitStatus::kBadData, [&] { model.Build(); }, {"1048579", "1048576"});
}

}  // namespace
}  // namespace jubal

#include "runtime/tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace jubal {
namespace {

using Scores = std::map<std::string, float, std::less<>>;

std::vector<BpeSymbol> Characters(std::string_view text) {
  std::vector<BpeSymbol> symbols;
  for (std::size_t i = 0; i < text.size(); ++i) symbols.push_back({text.substr(i, 1)});
  return symbols;
}

MergePriority PriorityFrom(const Scores& scores) {
  return [&scores](std::string_view left, std::string_view right) -> std::optional<float> {
    const auto found = scores.find(std::string(left) + std::string(right));
    if (found == scores.end()) return std::nullopt;
    return found->second;
  };
}

std::vector<std::string> Merge(const std::vector<BpeSymbol>& symbols, const Scores& scores) {
  const auto merged = MergePairs(symbols, PriorityFrom(scores));
  return {merged.begin(), merged.end()};
}

std::vector<std::string> Merge(std::string_view text, const Scores& scores) {
  return Merge(Characters(text), scores);
}

using Strings = std::vector<std::string>;

// If these fail, every prompt is cut into tokens that the model was not trained on.
TEST(MergePairsTest, MergesTheHighestPriorityFirst) {
  EXPECT_EQ(Merge("abc", {{"ab", -2}, {"bc", -1}}), (Strings{"a", "bc"}));
  EXPECT_EQ(Merge("abc", {{"ab", -1}, {"bc", -2}}), (Strings{"ab", "c"}));
}

TEST(MergePairsTest, MergesTheLeftmostOfEquals) {
  EXPECT_EQ(Merge("aaa", {{"aa", 0}}), (Strings{"aa", "a"}));
  EXPECT_EQ(Merge("abcd", {{"bc", 0}, {"cd", 0}, {"ab", 0}}), (Strings{"ab", "cd"}));
}

TEST(MergePairsTest, MergesMergedSymbolsAgain) {
  EXPECT_EQ(Merge("xabcx", {{"ab", -3}, {"abc", -1}}), (Strings{"x", "abc", "x"}));
  EXPECT_EQ(Merge("aaaaa", {{"aa", -1}, {"aaaa", -2}}), (Strings{"aaaa", "a"}));
}

TEST(MergePairsTest, LeavesWhatDoesNotMerge) {
  EXPECT_EQ(Merge("", {}), Strings());
  EXPECT_EQ(Merge("a", {{"aa", 0}}), Strings{"a"});
  EXPECT_EQ(Merge("ab", {{"ba", 0}}), (Strings{"a", "b"}));
}

// If this fails, digits and newlines that a model keeps apart run together.
TEST(MergePairsTest, NeverMergesAFrozenSymbol) {
  const std::string text = "aaaa";
  std::vector<BpeSymbol> symbols = Characters(text);
  symbols[1].frozen = true;
  EXPECT_EQ(Merge(symbols, {{"aa", 0}}), (Strings{"a", "a", "aa"}));
}

Strings MergeOneByOne(std::string_view text, const Scores& scores) {
  Strings symbols;
  for (const char byte : text) symbols.emplace_back(1, byte);
  while (true) {
    std::size_t best = 0;
    const float* best_score = nullptr;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = scores.find(symbols[i] + symbols[i + 1]);
      if (found == scores.end() || (best_score && found->second <= *best_score)) continue;
      best = i;
      best_score = &found->second;
    }
    if (best_score == nullptr) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

// If this fails, the queue misses a merge or makes one that is out of date.
TEST(MergePairsTest, AgreesWithSearchingForEachMerge) {
  std::mt19937 random(1);
  const auto below = [&](std::size_t n) { return random() % n; };
  const auto random_text = [&](std::size_t size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += "abc"[below(3)];
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    Scores scores;
    for (std::size_t i = below(20); i > 0; --i) {
      scores[random_text(2 + below(5))] = -static_cast<float>(below(8));
    }
    const std::string text = random_text(below(40));
    EXPECT_EQ(Merge(text, scores), MergeOneByOne(text, scores)) << text;
  }
}

// If this fails, a long prompt takes a server's main loop hostage.
TEST(MergePairsTest, AsksAboutALongTextOnlyAFewTimes) {
  const std::string text(1'000'000, 'a');
  std::size_t questions = 0;
  const MergePriority priority = [&](std::string_view left,
                                     std::string_view right) -> std::optional<float> {
    ++questions;
    const std::size_t size = left.size() + right.size();
    if (left.size() != right.size() || size > 16) return std::nullopt;
    return -static_cast<float>(size);
  };
  EXPECT_EQ(MergePairs(Characters(text), priority).size(), text.size() / 16);
  EXPECT_LE(questions, 3 * text.size());
}

}  // namespace
}  // namespace jubal

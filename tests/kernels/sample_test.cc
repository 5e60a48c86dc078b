#include "kernels/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

struct Samples {
  std::vector<std::int32_t> ids;
  std::vector<float> logprobs;
};

Samples Draw(const Floats& logits, const std::vector<SampleRow>& rows) {
  Ints ids({std::ssize(rows)}, -1);
  Floats logprobs({std::ssize(rows)});
  const std::int64_t bytes =
      SampleWorkspaceBytes(logits.view().size(1), std::ssize(rows), 0, Device::kCpu);
  const AlignedBytes memory(bytes);
  RunSpecification(Sample{ids.view(), logprobs.view(), logits.view(), rows,
                          TensorView(memory.data(), DType::kU8, {bytes})});
  return {ids.values(), logprobs.values()};
}

std::int32_t DrawOne(const std::vector<float>& logits, const SampleRow& row) {
  return Draw(Floats({1, std::ssize(logits)}, logits), {row}).ids[0];
}

/// How often each id is drawn at positions 0 … draws − 1.
std::map<std::int32_t, int> Counts(const std::vector<float>& logits, SampleRow row, int draws) {
  std::map<std::int32_t, int> counts;
  for (int i = 0; i < draws; ++i) {
    row.position = static_cast<std::uint64_t>(i);
    ++counts[DrawOne(logits, row)];
  }
  return counts;
}

std::vector<std::int32_t> Drawn(const std::vector<float>& logits, const SampleRow& row) {
  std::vector<std::int32_t> ids;
  for (const auto& [id, count] : Counts(logits, row, 400)) ids.push_back(id);
  return ids;
}

std::vector<float> Logs(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

/// Pearson's statistic of the counts against the probabilities.
double ChiSquare(const std::map<std::int32_t, int>& counts, const std::vector<double>& expected,
                 int draws) {
  double sum = 0.0;
  for (std::size_t id = 0; id < expected.size(); ++id) {
    const auto found = counts.find(static_cast<std::int32_t>(id));
    const double count = found == counts.end() ? 0.0 : found->second;
    sum += std::pow(count - draws * expected[id], 2) / (draws * expected[id]);
  }
  return sum;
}

using Ids = std::vector<std::int32_t>;

// Breaks: greedy requests get another token than the most probable, or one that depends on the
// machine when two tie.
TEST(SampleTest, TemperatureZeroTakesTheFirstOfTheLargest) {
  EXPECT_EQ(DrawOne({1, 3, 2, 3}, {.temperature = 0.0f}), 1);
  EXPECT_EQ(DrawOne({-5, -5}, {.temperature = 0.0f}), 0);
  EXPECT_EQ(DrawOne({-1, -0.0f, 0.0f}, {.temperature = 0.0f}), 1);
  std::vector<float> many(131072, -1.0f);
  many[131071] = many[70001] = 4.0f;
  EXPECT_EQ(DrawOne(many, {.temperature = 0.0f}), 70001);
}

// Breaks: answers are drawn from another distribution than the model's. A correct sampler exceeds
// the bound with one seed in 100,000 (χ² with 4 degrees of freedom; below, 19.5 with one).
TEST(SampleTest, DrawsInProportion) {
  const std::vector<double> probabilities = {0.1, 0.4, 0.05, 0.25, 0.2};
  const std::vector<float> logits = Logs({0.1f, 0.4f, 0.05f, 0.25f, 0.2f});
  constexpr int kDraws = 20000;
  EXPECT_LT(ChiSquare(Counts(logits, {.seed = 1}, kDraws), probabilities, kDraws), 28.5);
  // The path with filters, which keep everything here.
  const SampleRow filtered{.top_k = 5, .seed = 2};
  EXPECT_LT(ChiSquare(Counts(logits, filtered, kDraws), probabilities, kDraws), 28.5);
}

// Breaks: the temperature is applied upside down.
TEST(SampleTest, TemperatureDividesLogits) {
  constexpr int kDraws = 20000;
  // √0.64 : √0.36 = 0.8 : 0.6
  const std::vector<float> logits = Logs({0.64f, 0.36f});
  const auto counts = Counts(logits, {.temperature = 2.0f, .seed = 3}, kDraws);
  EXPECT_LT(ChiSquare(counts, {8.0 / 14, 6.0 / 14}, kDraws), 19.5);
  EXPECT_EQ(Drawn(logits, {.temperature = 1e-30f}), (Ids{0}));
}

// Breaks: a request's tokens change with the batch, on a retry, or repeat along its positions.
TEST(SampleTest, DependsOnSeedAndPositionAlone) {
  const Floats logits = RandomFloats({1, 1000}, 1);
  Floats batch({37, 1000});
  std::vector<SampleRow> rows(37);
  for (std::size_t r = 0; r < 37; ++r) {
    std::copy(logits.values().begin(), logits.values().end(), &batch[static_cast<int>(r) * 1000]);
    rows[r].seed = 1 + r / 10;
    rows[r].position = (std::uint64_t{1} << 40) + r % 10;
    rows[r].top_p = r % 3 == 0 ? 0.9f : 1.0f;
    rows[r].top_k = r % 3 == 1 ? 50 : 0;
  }
  const Samples together = Draw(batch, rows);
  for (std::size_t r = 0; r < 37; ++r) {
    const Samples alone = Draw(logits, {rows[r]});
    EXPECT_EQ(alone.ids[0], together.ids[r]);
    EXPECT_EQ(alone.logprobs[0], together.logprobs[r]);
  }
  std::vector<float> flat(1000);
  EXPECT_NE(DrawOne(flat, {.seed = 1}), DrawOne(flat, {.seed = 2}));
  EXPECT_NE(DrawOne(flat, {.seed = 1}), DrawOne(flat, {.seed = std::uint64_t{1} << 32 | 1}));
  EXPECT_NE(DrawOne(flat, {.position = 1}), DrawOne(flat, {.position = 2}));
}

// Breaks: after an upgrade or on another machine, seeds give other tokens. The first words of
// Philox4x32-10 for key 0 and counter 0 are 6627e8d5 e169c58d (Random123's known answers), so
// u = e169c58d6627e8d5 / 2⁶⁴ = 0.88052, the 880th of 1000.
TEST(SampleTest, UsesPhilox) { EXPECT_EQ(DrawOne(std::vector<float>(1000), {}), 880); }

// Breaks: top_k keeps another number of tokens, or an arbitrary one of those that tie.
TEST(SampleTest, TopKKeepsTheLargest) {
  const std::vector<float> logits = {1.0f, 1.5f, 1.2f, 1.5f, 1.2f, 0.0f};
  EXPECT_EQ(Drawn(logits, {.top_k = 1}), (Ids{1}));
  EXPECT_EQ(Drawn(logits, {.top_k = 2}), (Ids{1, 3}));
  EXPECT_EQ(Drawn(logits, {.top_k = 3}), (Ids{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.top_k = 6}), (Ids{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(Drawn(logits, {.top_k = 100}), (Ids{0, 1, 2, 3, 4, 5}));
}

// Breaks: top_p keeps too little or too much.
TEST(SampleTest, TopPKeepsTheSmallestSufficientPrefix) {
  const std::vector<float> logits = Logs({0.1f, 0.5f, 0.15f, 0.25f});
  EXPECT_EQ(Drawn(logits, {.top_p = 0.0f}), (Ids{1}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.49f}), (Ids{1}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.51f}), (Ids{1, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.74f}), (Ids{1, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.8f}), (Ids{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.95f}), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(Drawn({0.0f, 0.0f, 0.0f}, {.top_p = 0.5f}), (Ids{0, 1}));
}

// Breaks: top_p is a share of all tokens' probability although top_k came first.
TEST(SampleTest, TopPComesAfterTopK) {
  const std::vector<float> logits = Logs({0.3f, 0.3f, 0.2f, 0.2f});
  EXPECT_EQ(Drawn(logits, {.top_k = 2, .top_p = 0.49f}), (Ids{0}));
  EXPECT_EQ(Drawn(logits, {.top_k = 3, .top_p = 0.74f}), (Ids{0, 1}));
}

// Breaks: min_p is taken as a probability instead of a share of the largest.
TEST(SampleTest, MinPIsRelativeToTheMostProbable) {
  const std::vector<float> logits = Logs({0.1f, 0.4f, 0.21f, 0.29f});
  EXPECT_EQ(Drawn(logits, {.min_p = 0.5f}), (Ids{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.min_p = 0.7f}), (Ids{1, 3}));
  EXPECT_EQ(Drawn(logits, {.min_p = 1.0f}), (Ids{1}));
  EXPECT_EQ(Drawn(logits, {.min_p = 0.2f}), (Ids{0, 1, 2, 3}));
  // After the temperature: (0.21 / 0.4)^½ = 0.72, (0.1 / 0.4)^½ = 0.5.
  EXPECT_EQ(Drawn(logits, {.temperature = 2.0f, .min_p = 0.7f}), (Ids{1, 2, 3}));
}

// Breaks: over a real vocabulary the filters, which order it piece by piece, lose candidates.
TEST(SampleTest, FiltersAgreeWithAFullSort) {
  constexpr std::int32_t kVocabulary = 131072;
  Floats logits = RandomFloats({1, kVocabulary}, 5, 2.0f);
  for (float& logit : logits.values()) logit = std::round(logit * 16.0f) / 16.0f;  // ties
  Ids order(kVocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  double total = 0.0;
  for (const float logit : logits.values()) total += std::exp(static_cast<double>(logit));
  for (const float top_p : {0.001f, 0.1f, 0.5f, 0.9f, 0.999f}) {
    std::vector<bool> allowed(kVocabulary);
    double sum = 0.0;
    for (const std::int32_t id : order) {
      allowed[static_cast<std::size_t>(id)] = true;
      sum += std::exp(static_cast<double>(logits[id]));
      if (sum > (top_p + 1e-6) * total) break;
    }
    for (std::uint64_t position = 0; position < 40; ++position) {
      const std::int32_t id =
          DrawOne(logits.values(), {.top_p = top_p, .seed = 9, .position = position});
      ASSERT_TRUE(allowed[static_cast<std::size_t>(id)]) << top_p;
    }
  }
  // The last candidate that is kept can be drawn, and the one after it cannot.
  Ids kept(order.begin(), order.begin() + 3);
  std::sort(kept.begin(), kept.end());
  EXPECT_EQ(Drawn(logits.values(), {.temperature = 100.0f, .top_k = 3}), kept);
}

// Breaks: penalties push the wrong way, or touch tokens that they should not.
TEST(SampleTest, PenaltiesComeFirst) {
  const Ids seen = {0, 1};
  const Ids produced = {1};
  const Ids counts = {3};
  SampleRow row{.temperature = 0.0f};
  row.seen = seen;
  row.produced = produced;
  row.produced_counts = counts;
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 1.0f}, row), 1);
  row.repetition_penalty = 2.0f;  // 1, 1.5, 1
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 1.0f}, row), 1);
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 1.6f}, row), 2);
  EXPECT_EQ(DrawOne({-1.0f, -1.0f, -1.9f}, row), 2);  // −2, −2, −1.9
  row.presence_penalty = 0.6f;                        // 1, 0.9, …
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 0.0f}, row), 0);
  row.presence_penalty = 0.0f;
  row.frequency_penalty = 0.15f;  // 1, 1.05, …
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 0.0f}, row), 1);
  row.frequency_penalty = 0.2f;  // 1, 0.9, …
  EXPECT_EQ(DrawOne({2.0f, 3.0f, 0.0f}, row), 0);
}

// Breaks: log-probabilities in answers are of the filtered distribution or inaccurate.
TEST(SampleTest, LogprobsAreTheModels) {
  const std::vector<float> logits = Logs({0.1f, 0.4f, 0.2f, 0.3f});
  SampleRow row{.temperature = 0.1f, .top_k = 2, .presence_penalty = 9.0f};
  const Ids produced = {1};
  const Ids counts = {1};
  row.produced = produced;
  row.produced_counts = counts;
  const Samples samples = Draw(Floats({1, 4}, logits), {row});
  EXPECT_EQ(samples.ids[0], 3);
  EXPECT_NEAR(samples.logprobs[0], std::log(0.3), 3e-7);

  const Floats many = RandomFloats({1, 131072}, 6, 4.0f);
  const Samples sample = Draw(many, {{.seed = 4}});
  double sum = 0.0;
  for (const float logit : many.values()) sum += std::exp(static_cast<double>(logit));
  // The weights' errors of 1.5 ulp hardly average out at worst, and one rounding of the result.
  const double expected = many[sample.ids[0]] - std::log(sum);
  EXPECT_NEAR(sample.logprobs[0], expected, 2e-7 + std::fabs(expected) * 6e-8);
}

// Breaks: scoring a prompt and sampling disagree about the same token.
TEST(LogProbTest, HasTheBitsOfSample) {
  const Floats logits = RandomFloats({5, 999}, 7, 3.0f);
  const Samples samples = Draw(logits, std::vector<SampleRow>(5));
  const Ints ids({5}, samples.ids);
  Floats out({5});
  RunSpecification(LogProb{out.view(), logits.view(), ids.view()});
  EXPECT_EQ(out.values(), samples.logprobs);
}

// Breaks: a model with broken weights answers with noise, or takes the server down.
TEST(SampleTest, ReportsLogitsThatAreNotFinite) {
  for (const float broken : {NAN, INFINITY, -INFINITY}) {
    const Floats logits({1, 10}, {0, broken, 1, 2, 3, 4, 5, 6, 7, 8});
    for (const float temperature : {0.0f, 1.0f}) {
      const Samples samples = Draw(logits, {{.temperature = temperature}});
      EXPECT_EQ(samples.ids[0], 0);
      EXPECT_TRUE(std::isnan(samples.logprobs[0]));
    }
    Floats out({1});
    RunSpecification(LogProb{out.view(), logits.view(), Ints({1}, {3}).view()});
    EXPECT_TRUE(std::isnan(out.values()[0]));
  }
}

// Breaks: a step that completes no token crashes.
TEST(SampleTest, TakesNoRows) {
  EXPECT_TRUE(Draw(Floats({0, 100}), {}).ids.empty());
  Floats out({0});
  const Ints ids({0});
  const Floats logits({0, 100});
  RunSpecification(LogProb{out.view(), logits.view(), ids.view()});
}

}  // namespace
}  // namespace jubal

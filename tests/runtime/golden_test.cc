// Holds the whole forward pass against xAI's own JAX code (fp32) and Hugging Face transformers.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

struct Prompt {
  std::vector<TokenId> ids;
  std::int64_t new_tokens = 0;
};

std::vector<Prompt> Prompts(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::vector<Prompt> prompts;
  for (const auto& entry : nlohmann::json::parse(stream)) {
    prompts.push_back({entry["ids"].get<std::vector<TokenId>>(), entry["new_tokens"]});
  }
  return prompts;
}

struct GoldenCase {
  const char* name;
  std::filesystem::path model;
};

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path Model() const {
    return GetParam() == std::string("demo") ? DemoModel() : GoldenDirectory() / GetParam();
  }
  std::filesystem::path Reference(const char* arithmetic) const {
    return GoldenDirectory() / GetParam() /
           (std::string("reference_") + arithmetic + ".safetensors");
  }
};

// A user sees the greedy continuation of the published model, or another model's.
TEST_P(GoldenTest, GreedyTokensAreTheReferences) {
  const auto reference = ReadReference(Reference("fp32"));
  const std::vector<Prompt> prompts = Prompts(GoldenDirectory() / GetParam() / "prompts.json");
  std::vector<GenerationRequest> requests;
  for (const Prompt& prompt : prompts) {
    if (prompt.new_tokens == 0) continue;
    requests.push_back({.prompt = prompt.ids,
                        .sampling = {.temperature = 0},
                        .max_tokens = prompt.new_tokens,
                        .stop_ids = {},
                        .prompt_logprobs = false});
  }
  const std::vector<Generated> results = Generate(Model(), {}, {}, requests);
  std::size_t r = 0;
  for (std::size_t k = 0; k < prompts.size(); ++k) {
    if (prompts[k].new_tokens == 0) continue;
    const std::vector<TokenId> all = reference.at("tokens_" + std::to_string(k)).Tokens();
    const auto split = all.begin() + static_cast<std::ptrdiff_t>(prompts[k].ids.size());
    EXPECT_EQ(results[r++].tokens, std::vector<TokenId>(split, all.end())) << "prompt " << k;
  }
}

// Wrong arithmetic shows in logits long before it shows in greedy tokens. Bound: an eighth of the
// error of the published bf16 arithmetic itself, over the tokens before the two references part.
TEST_P(GoldenTest, LogitErrorIsAnEighthOfPublishedArithmetics) {
  const auto fp32 = ReadReference(Reference("fp32"));
  const auto bf16 = ReadReference(Reference("bf16"));
  const std::vector<Prompt> prompts = Prompts(GoldenDirectory() / GetParam() / "prompts.json");
  for (std::size_t k = 0; k < prompts.size(); ++k) {
    const std::string suffix = std::to_string(k);
    const std::vector<TokenId> tokens = fp32.at("tokens_" + suffix).Tokens();
    const std::vector<TokenId> other = bf16.at("tokens_" + suffix).Tokens();
    const ReferenceTensor& expected = fp32.at("logits_" + suffix);
    const ReferenceTensor& published = bf16.at("logits_" + suffix);
    const auto vocabulary = static_cast<std::size_t>(expected.shape[1]);
    const auto kept = static_cast<std::size_t>(expected.shape[0]);  // all rows, or the last
    const auto logits = TeacherForcedLogits(Model(), {}, {}, tokens);
    double own_error = 0;
    double published_error = 0;
    std::size_t count = 0;
    for (std::size_t row = 0; row < kept; ++row) {
      const std::size_t token = tokens.size() - kept + row;
      if (!std::equal(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(token) + 1,
                      other.begin())) {
        break;
      }
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const double want = expected.values[row * vocabulary + v];
        own_error += std::abs(static_cast<double>(logits[token][v]) - want);
        published_error += std::abs(published.values[row * vocabulary + v] - want);
        ++count;
      }
    }
    if (count == 0) continue;
    own_error /= static_cast<double>(count);
    published_error /= static_cast<double>(count);
    EXPECT_LE(own_error, published_error / 8) << "prompt " << k;
    std::printf("%s prompt %zu: mean logit error %.2e, published bf16 arithmetic %.2e\n",
                GetParam(), k, own_error, published_error);
  }
}

INSTANTIATE_TEST_SUITE_P(Grok1, GoldenTest, testing::Values("grok1-12layers", "grok1-gqa6", "demo"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Scores are what users compare models by.
TEST(GoldenScoreTest, DemoLogProbabilitiesAreWithin3e4InTheMean) {
  const auto reference = ReadReference(GoldenDirectory() / "demo/reference_fp32.safetensors");
  std::vector<GenerationRequest> requests;
  for (int k = 0; k < 5; ++k) {
    requests.push_back({.prompt = reference.at("tokens_" + std::to_string(k)).Tokens(),
                        .sampling = {},
                        .max_tokens = 0,
                        .stop_ids = {},
                        .prompt_logprobs = true});
  }
  const std::vector<Generated> results = Generate(DemoModel(), {}, {}, requests);
  for (int k = 0; k < 5; ++k) {
    const ReferenceTensor& expected = reference.at("logprob_" + std::to_string(k));
    const std::vector<float>& got = results[static_cast<std::size_t>(k)].prompt_logprobs;
    ASSERT_EQ(got.size(), expected.values.size());
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      error += std::abs(static_cast<double>(got[i]) - expected.values[i]);
    }
    EXPECT_LE(error / static_cast<double>(got.size()), 3e-4) << "prompt " << k;
  }
}

// The description carries a second family, or every family needs a decoder of its own.
TEST(GoldenMixtralTest, LogitsAndGreedyTokensAreTransformers) {
  const std::filesystem::path model = GoldenDirectory() / "mixtral";
  const auto reference = ReadReference(model / "reference.safetensors");
  const ReferenceTensor& ids = reference.at("ids");
  const ReferenceTensor& expected = reference.at("logits");
  const std::vector<TokenId> all = ids.Tokens();
  const auto length = static_cast<std::size_t>(ids.shape[1]);
  const auto vocabulary = static_cast<std::size_t>(expected.shape[2]);
  ServingOptions options;
  options.kv_type = KvType::kF32;
  for (std::size_t row = 0; row < 2; ++row) {
    const std::vector<TokenId> tokens(
        all.begin() + static_cast<std::ptrdiff_t>(row * length),
        all.begin() + static_cast<std::ptrdiff_t>((row + 1) * length));
    const auto logits = TeacherForcedLogits(model, {}, options, tokens);
    double worst = 0;
    for (std::size_t t = 0; t < length; ++t) {
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const double want = expected.values[(row * length + t) * vocabulary + v];
        worst = std::max(worst, std::abs(static_cast<double>(logits[t][v]) - want));
      }
    }
    EXPECT_LE(worst, 2e-4);
  }
  const std::vector<TokenId> greedy = reference.at("greedy").Tokens();
  const std::vector<Generated> results = Generate(model, {}, {},
                                                  {{.prompt = {greedy.begin(), greedy.begin() + 11},
                                                    .sampling = {.temperature = 0},
                                                    .max_tokens = 24,
                                                    .stop_ids = {},
                                                    .prompt_logprobs = false}});
  EXPECT_EQ(results[0].tokens, std::vector<TokenId>(greedy.begin() + 11, greedy.end()));
}

}  // namespace
}  // namespace jubal

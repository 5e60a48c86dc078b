#include "runtime/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace jubal {
namespace {

constexpr RequestLimits kLimits{.vocabulary = 100, .context = 16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

GenerationRequest Sound() {
  GenerationRequest request;
  request.prompt = {0, 99, 5};
  request.max_tokens = 4;
  request.stop_ids = {2, 99};
  return request;
}

// If this fails, the server turns away requests at the very edge of what it promises to take.
TEST(ValidateTest, TakesEveryEdge) {
  using Edit = std::function<void(GenerationRequest&)>;
  const std::vector<Edit> edits = {
      [](GenerationRequest&) {},
      [](GenerationRequest& r) { r.max_tokens = 13; },
      [](GenerationRequest& r) { r.sampling.temperature = 0.0f; },
      [](GenerationRequest& r) { r.sampling.temperature = 100.0f; },
      [](GenerationRequest& r) { r.sampling.top_k = 0; },
      [](GenerationRequest& r) { r.sampling.top_k = std::numeric_limits<std::int32_t>::max(); },
      [](GenerationRequest& r) { r.sampling.top_p = std::numeric_limits<float>::min(); },
      [](GenerationRequest& r) { r.sampling.min_p = 1.0f; },
      [](GenerationRequest& r) { r.sampling.presence_penalty = -2.0f; },
      [](GenerationRequest& r) { r.sampling.frequency_penalty = 2.0f; },
      [](GenerationRequest& r) { r.sampling.repetition_penalty = 10.0f; },
      [](GenerationRequest& r) { r.stop_ids.clear(); },
      [](GenerationRequest& r) {
        r.max_tokens = 0;
        r.prompt_logprobs = true;
      },
      [](GenerationRequest& r) {
        r.prompt.assign(16, 1);
        r.max_tokens = 0;
        r.prompt_logprobs = true;
      },
  };
  for (std::size_t i = 0; i < edits.size(); ++i) {
    GenerationRequest request = Sound();
    edits[i](request);
    const auto rejection = Validate(request, kLimits);
    EXPECT_FALSE(rejection.has_value()) << "edit " << i << ": " << rejection->message;
  }
}

struct Fault {
  std::function<void(GenerationRequest&)> edit;
  Rejection::Reason reason;
  std::string field;
  std::vector<std::string> mentions;  // the value and the bound
};

// If this fails, a bad request reaches the ranks (a NaN, an id outside the embedding) and takes the
// whole job down, or its sender cannot tell from the answer what to mend.
TEST(ValidateTest, NamesFieldValueAndBound) {
  using enum Rejection::Reason;
  const std::vector<Fault> faults = {
      {[](auto& r) { r.prompt.clear(); }, kInvalid, "prompt", {"empty"}},
      {[](auto& r) { r.prompt[1] = 100; }, kInvalid, "prompt", {"prompt[1]", "100", "99"}},
      {[](auto& r) { r.prompt[2] = -1; }, kInvalid, "prompt", {"prompt[2]", "4294967295", "99"}},
      {[](auto& r) { r.max_tokens = -3; }, kInvalid, "max_tokens", {"-3", "0"}},
      {[](auto& r) { r.max_tokens = 0; }, kInvalid, "max_tokens", {"0", "prompt_logprobs"}},
      {[](auto& r) { r.max_tokens = 14; }, kTooLarge, "max_tokens", {"14", "16", "13"}},
      {[](auto& r) { r.max_tokens = std::numeric_limits<std::int64_t>::max(); },
       kTooLarge,
       "max_tokens",
       {"9223372036854775807", "16"}},
      {[](auto& r) { r.prompt.assign(17, 1); }, kTooLarge, "prompt", {"17", "16"}},
      {[](auto& r) { r.sampling.temperature = -0.5f; }, kInvalid, "temperature", {"-0.5", "100"}},
      {[](auto& r) { r.sampling.temperature = 101.0f; }, kInvalid, "temperature", {"101", "100"}},
      {[](auto& r) { r.sampling.temperature = kNan; }, kInvalid, "temperature", {"nan"}},
      {[](auto& r) { r.sampling.temperature = kInfinity; }, kInvalid, "temperature", {"inf"}},
      {[](auto& r) { r.sampling.top_k = -1; }, kInvalid, "top_k", {"-1", "0"}},
      {[](auto& r) { r.sampling.top_p = 0.0f; }, kInvalid, "top_p", {"0", "1"}},
      {[](auto& r) { r.sampling.top_p = 1.5f; }, kInvalid, "top_p", {"1.5", "1"}},
      {[](auto& r) { r.sampling.top_p = kNan; }, kInvalid, "top_p", {"nan"}},
      {[](auto& r) { r.sampling.min_p = -0.25f; }, kInvalid, "min_p", {"-0.25", "0"}},
      {[](auto& r) { r.sampling.min_p = 1.5f; }, kInvalid, "min_p", {"1.5", "1"}},
      {[](auto& r) { r.sampling.min_p = kNan; }, kInvalid, "min_p", {"nan"}},
      {[](auto& r) { r.sampling.presence_penalty = 2.5f; },
       kInvalid,
       "presence_penalty",
       {"2.5", "-2", "2"}},
      {[](auto& r) { r.sampling.presence_penalty = kNan; }, kInvalid, "presence_penalty", {"nan"}},
      {[](auto& r) { r.sampling.frequency_penalty = -2.5f; },
       kInvalid,
       "frequency_penalty",
       {"-2.5", "-2", "2"}},
      {[](auto& r) { r.sampling.frequency_penalty = kNan; },
       kInvalid,
       "frequency_penalty",
       {"nan"}},
      {[](auto& r) { r.sampling.repetition_penalty = 0.0f; },
       kInvalid,
       "repetition_penalty",
       {"0", "10"}},
      {[](auto& r) { r.sampling.repetition_penalty = 11.0f; },
       kInvalid,
       "repetition_penalty",
       {"11", "10"}},
      {[](auto& r) { r.sampling.repetition_penalty = kNan; },
       kInvalid,
       "repetition_penalty",
       {"nan"}},
      {[](auto& r) { r.stop_ids[1] = 100; }, kInvalid, "stop_ids", {"stop_ids[1]", "100", "99"}},
      {[](auto& r) { r.stop_ids[0] = -7; },
       kInvalid,
       "stop_ids",
       {"stop_ids[0]", "4294967289", "99"}},
  };
  for (std::size_t i = 0; i < faults.size(); ++i) {
    GenerationRequest request = Sound();
    faults[i].edit(request);
    const auto rejection = Validate(request, kLimits);
    ASSERT_TRUE(rejection.has_value()) << "fault " << i;
    EXPECT_EQ(rejection->reason, faults[i].reason) << "fault " << i;
    EXPECT_EQ(rejection->field, faults[i].field);
    EXPECT_EQ(rejection->message.rfind(faults[i].field, 0), 0u) << rejection->message;
    EXPECT_EQ(rejection->message.back(), '.') << rejection->message;
    for (const std::string& mention : faults[i].mentions) {
      EXPECT_NE(rejection->message.find(mention), std::string::npos)
          << "\"" << rejection->message << "\" does not mention " << mention;
    }
  }
}

// If this fails, a client that retries elsewhere on "too large" does so with a request that is
// wrong everywhere.
TEST(ValidateTest, InvalidComesBeforeTooLarge) {
  GenerationRequest request = Sound();
  request.prompt.assign(17, 1);
  request.sampling.top_p = 2.0f;
  const auto rejection = Validate(request, kLimits);
  ASSERT_TRUE(rejection.has_value());
  EXPECT_EQ(rejection->reason, Rejection::Reason::kInvalid);
  EXPECT_EQ(rejection->field, "top_p");
}

}  // namespace
}  // namespace jubal

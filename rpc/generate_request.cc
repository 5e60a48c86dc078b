#include "rpc/generate_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "rpc/status.h"
#include "runtime/tokenizer/utf8.h"

namespace jubal {
namespace {

constexpr int kMaxStopStrings = 8;
constexpr std::size_t kMaxStopBytes = 256;

}  // namespace

grpc::Status CheckText(const std::string& field, const std::string& text,
                       const TextLimits& limits) {
  if (!limits.has_tokenizer) {
    return grpc::Status(
        grpc::StatusCode::FAILED_PRECONDITION,
        fmt::format("{} needs a tokenizer, and this server has none: use token_ids.", field));
  }
  if (std::cmp_greater(text.size(), limits.max_text_bytes)) {
    return InvalidField(field, fmt::format("{} has {} bytes, but must have at most {}.", field,
                                           text.size(), limits.max_text_bytes));
  }
  if (WellFormedUtf8Size(text) != text.size()) {
    return InvalidField(field, fmt::format("{} is not UTF-8.", field));
  }
  return grpc::Status::OK;
}

grpc::Status CheckRequest(const v1::GenerateRequest& request, const TextLimits& limits) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      if (auto status = CheckText("text", request.text(), limits); !status.ok()) return status;
      if (request.text().empty()) return InvalidField("text", "text is empty.");
      break;
    case v1::GenerateRequest::kTokenIds:
      if (request.token_ids().ids().empty()) {
        return InvalidField("token_ids", "token_ids is empty.");
      }
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return InvalidField("prompt", "there is no prompt: text or token_ids must be set.");
  }
  if (request.has_max_tokens() && request.max_tokens() < 1) {
    return InvalidField("max_tokens", fmt::format("max_tokens is {}, but must be at least 1.",
                                                  request.max_tokens()));
  }
  if (request.stop_size() > kMaxStopStrings) {
    return InvalidField("stop", fmt::format("stop has {} strings, but may have at most {}.",
                                            request.stop_size(), kMaxStopStrings));
  }
  for (const std::string& stop : request.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return InvalidField("stop", fmt::format("a stop string has {} bytes, but must have 1 to {}.",
                                              stop.size(), kMaxStopBytes));
    }
    if (auto status = CheckText("stop", stop, limits); !status.ok()) return status;
  }
  return grpc::Status::OK;
}

std::vector<TokenId> ToTokenIds(const google::protobuf::RepeatedField<std::uint32_t>& ids) {
  constexpr std::uint32_t kMax = std::numeric_limits<TokenId>::max();
  std::vector<TokenId> tokens(static_cast<std::size_t>(ids.size()));
  std::transform(ids.begin(), ids.end(), tokens.begin(), [](std::uint32_t id) {
    return id <= kMax ? static_cast<TokenId>(id) : TokenId{-1};
  });
  return tokens;
}

GenerationRequest ToGenerationRequest(const v1::GenerateRequest& request,
                                      std::vector<TokenId> prompt, std::uint64_t seed,
                                      const ServingInfo& model, const TextLimits& limits) {
  GenerationRequest generation;
  SamplingParams& sampling = generation.sampling;
  if (request.has_temperature()) sampling.temperature = request.temperature();
  if (request.has_top_k()) sampling.top_k = request.top_k();
  if (request.has_top_p()) sampling.top_p = request.top_p();
  if (request.has_min_p()) sampling.min_p = request.min_p();
  if (request.has_presence_penalty()) sampling.presence_penalty = request.presence_penalty();
  if (request.has_frequency_penalty()) sampling.frequency_penalty = request.frequency_penalty();
  if (request.has_repetition_penalty()) sampling.repetition_penalty = request.repetition_penalty();
  sampling.seed = request.has_seed() ? request.seed() : seed;
  const std::int64_t room = model.limits.context - static_cast<std::int64_t>(prompt.size());
  generation.max_tokens =
      request.has_max_tokens()
          ? request.max_tokens()
          : std::max<std::int64_t>(std::min(limits.default_max_tokens, room), 1);
  if (!request.ignore_eos()) generation.stop_ids = model.eos_ids;
  generation.prompt = std::move(prompt);
  return generation;
}

}  // namespace jubal

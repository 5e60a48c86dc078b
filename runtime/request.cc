#include "runtime/request.h"

#include <fmt/format.h>

#include <utility>

namespace jubal {
namespace {

Rejection Invalid(std::string field, std::string message) {
  return {Rejection::Reason::kInvalid, std::move(field), std::move(message)};
}

Rejection TooLarge(std::string field, std::string message) {
  return {Rejection::Reason::kTooLarge, std::move(field), std::move(message)};
}

/// NaN is in no range.
std::optional<Rejection> OutsideClosed(const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return std::nullopt;
  return Invalid(field,
                 fmt::format("{} is {}, but must be from {} to {}.", field, value, low, high));
}

/// The range is open below: 0 itself has no meaning for these.
std::optional<Rejection> OutsidePositive(const char* field, float value, float high) {
  if (value > 0.0f && value <= high) return std::nullopt;
  return Invalid(field,
                 fmt::format("{} is {}, but must be above 0 and at most {}.", field, value, high));
}

std::optional<Rejection> OutsideVocabulary(const char* field, const std::vector<TokenId>& ids,
                                           std::int64_t vocabulary) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocabulary) continue;
    return Invalid(field,
                   fmt::format("{}[{}] is token {}, but the vocabulary has ids 0 to {}.", field, i,
                               static_cast<std::uint32_t>(ids[i]), vocabulary - 1));
  }
  return std::nullopt;
}

std::optional<Rejection> InvalidSampling(const SamplingParams& p) {
  if (auto fault = OutsideClosed("temperature", p.temperature, 0.0f, 100.0f)) return fault;
  if (p.top_k < 0) {
    return Invalid("top_k", fmt::format("top_k is {}, but must be at least 0.", p.top_k));
  }
  if (auto fault = OutsidePositive("top_p", p.top_p, 1.0f)) return fault;
  if (auto fault = OutsideClosed("min_p", p.min_p, 0.0f, 1.0f)) return fault;
  if (auto fault = OutsideClosed("presence_penalty", p.presence_penalty, -2.0f, 2.0f)) return fault;
  if (auto fault = OutsideClosed("frequency_penalty", p.frequency_penalty, -2.0f, 2.0f)) {
    return fault;
  }
  return OutsidePositive("repetition_penalty", p.repetition_penalty, 10.0f);
}

}  // namespace

// Everything that is wrong whatever the server comes before what only this server cannot hold.
std::optional<Rejection> Validate(const GenerationRequest& request, const RequestLimits& limits) {
  if (request.prompt.empty()) {
    return Invalid("prompt", "prompt is empty, but must have at least 1 token.");
  }
  if (auto fault = OutsideVocabulary("prompt", request.prompt, limits.vocabulary)) return fault;
  if (request.max_tokens < 0) {
    return Invalid("max_tokens",
                   fmt::format("max_tokens is {}, but must be at least 0.", request.max_tokens));
  }
  if (request.max_tokens == 0 && !request.prompt_logprobs) {
    return Invalid("max_tokens",
                   "max_tokens is 0, but must be at least 1 unless prompt_logprobs is set.");
  }
  if (auto fault = InvalidSampling(request.sampling)) return fault;
  if (auto fault = OutsideVocabulary("stop_ids", request.stop_ids, limits.vocabulary)) return fault;

  const auto prompt_size = static_cast<std::int64_t>(request.prompt.size());
  if (prompt_size > limits.context) {
    return TooLarge("prompt", fmt::format("prompt has {} tokens, but the context has {}.",
                                          prompt_size, limits.context));
  }
  if (request.max_tokens > limits.context - prompt_size) {
    return TooLarge(
        "max_tokens",
        fmt::format("max_tokens is {}, but beside a prompt of {} tokens the context "
                    "of {} has room for {}.",
                    request.max_tokens, prompt_size, limits.context, limits.context - prompt_size));
  }
  return std::nullopt;
}

}  // namespace jubal

#ifndef JUBAL_RUNTIME_REQUEST_H_
#define JUBAL_RUNTIME_REQUEST_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/token.h"

namespace jubal {

/// Identifies a request within one engine; chosen by whoever submits it, never reused.
using RequestId = std::uint64_t;

/// How tokens are drawn; the order of the filters is that of kernels/sample.h.
struct SamplingParams {
  float temperature = 1.0f;         // ≥ 0; 0 is greedy
  std::int32_t top_k = 0;           // ≥ 0; 0 keeps all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float presence_penalty = 0.0f;    // [−2, 2]
  float frequency_penalty = 0.0f;   // [−2, 2]
  float repetition_penalty = 1.0f;  // (0, 10]
  std::uint64_t seed = 0;           // the same seed, prompt and parameters give the same tokens
};

/// What one generation is to do, in token ids: text is made and read outside the engine.
struct GenerationRequest {
  std::vector<TokenId> prompt;  // at least one
  SamplingParams sampling;
  std::int64_t max_tokens = 0;    // new tokens; 0 only with prompt_logprobs
  std::vector<TokenId> stop_ids;  // generation ends after one of these
  bool prompt_logprobs = false;   // score the prompt: ln p of each of its tokens but the first
};

/// Why a request was not taken. `field` is the culprit's name as users know it ("temperature").
struct Rejection {
  enum class Reason {
    kInvalid,   // wrong whatever the load
    kTooLarge,  // can never fit this server's context or KV memory
    kQueueFull  // try again later
  };
  Reason reason = Reason::kInvalid;
  std::string field;
  std::string message;  // one sentence
};

enum class FinishReason {
  kStop,    // an end token
  kLength,  // max_tokens reached
};

/// One thing that happened to a request. Events of a request come in order; `finish` is set in the
/// last one. A cancelled request has no further events.
struct GenerationEvent {
  RequestId id = 0;
  std::vector<float> prompt_logprobs;  // with the first event of a scored prompt: prompt size − 1
  std::optional<TokenId> token;        // absent only when nothing was to be generated
  float logprob = 0.0f;                // natural logarithm, of `token`
  std::optional<FinishReason> finish;
};

/// Limits that a request is held against.
struct RequestLimits {
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;  // most tokens, prompt and output together, that one request may have
};

/// Says what is wrong with the request, if anything; the same answer for every front end.
std::optional<Rejection> Validate(const GenerationRequest& request, const RequestLimits& limits);

/// Called for each event, on the engine's thread; must not block.
using EventSink = std::function<void(const GenerationEvent&)>;

}  // namespace jubal

#endif  // JUBAL_RUNTIME_REQUEST_H_

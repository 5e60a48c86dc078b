#ifndef JUBAL_RPC_GENERATE_REQUEST_H_
#define JUBAL_RPC_GENERATE_REQUEST_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>
#include <vector>

#include "jubal/v1/generation.pb.h"
#include "rpc/control_frames.h"
#include "runtime/request.h"
#include "runtime/token.h"

namespace jubal {

/// What requests are held against before the model is asked.
struct TextLimits {
  bool has_tokenizer = false;
  std::int64_t max_text_bytes = 0;
  std::int64_t default_max_tokens = 0;
};

/// What is wrong with the request whatever the model; quick, also for large prompts.
grpc::Status CheckRequest(const v1::GenerateRequest& request, const TextLimits& limits);

/// What is wrong with a text that is to be tokenised, as field `field`.
grpc::Status CheckText(const std::string& field, const std::string& text, const TextLimits& limits);

/// The ids of the wire as the engine has them: one too large for a TokenId becomes −1, which no
/// vocabulary holds.
std::vector<TokenId> ToTokenIds(const google::protobuf::RepeatedField<std::uint32_t>& ids);

/// The engine's request for a checked one, defaults filled in; `seed` is used if it names none.
/// Not validated.
GenerationRequest ToGenerationRequest(const v1::GenerateRequest& request,
                                      std::vector<TokenId> prompt, std::uint64_t seed,
                                      const ServingInfo& model, const TextLimits& limits);

}  // namespace jubal

#endif  // JUBAL_RPC_GENERATE_REQUEST_H_

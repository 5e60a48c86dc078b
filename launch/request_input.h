#ifndef JUBAL_LAUNCH_REQUEST_INPUT_H_
#define JUBAL_LAUNCH_REQUEST_INPUT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/options.h"
#include "parallel/plan.h"
#include "runtime/model_source.h"
#include "runtime/request.h"
#include "runtime/token.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

/// The model's tokenizer, if it has one.
std::optional<Tokenizer> OpenTokenizer(const ModelSource& source);

/// The tokens of a text that `flag` gave. Throws UserError if the model has no tokenizer.
std::vector<TokenId> EncodeText(const std::optional<Tokenizer>& tokenizer, const std::string& text,
                                const ModelSource& source, const char* flag);

/// Throws UserError unless the model as it will be served takes the request.
void CheckRequest(const GenerationRequest& request, const ModelSource& source,
                  const ParallelPlan& plan, const ServingOptions& serving);

/// Positions that one request may have, prompt and output together.
std::int64_t ContextOf(const ModelSource& source, const ParallelPlan& plan,
                       const ServingOptions& serving);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_REQUEST_INPUT_H_

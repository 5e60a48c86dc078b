#include "launch/request_input.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "runtime/memory_plan.h"

namespace jubal {

std::optional<Tokenizer> OpenTokenizer(const ModelSource& source) {
  if (!source.tokenizer()) return std::nullopt;
  Tokenizer tokenizer = Tokenizer::FromFile(*source.tokenizer());
  // Fewer are common: vocabularies are padded.
  if (tokenizer.vocabulary_size() > source.model().vocabulary) {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{} has {} tokens, but the model's vocabulary has {}: it is "
                                "another model's",
                                source.tokenizer()->string(), tokenizer.vocabulary_size(),
                                source.model().vocabulary));
  }
  return tokenizer;
}

std::vector<TokenId> EncodeText(const std::optional<Tokenizer>& tokenizer, const std::string& text,
                                const ModelSource& source, const char* flag) {
  if (!tokenizer) {
    throw UserError(ExitStatus::kUsage,
                    fmt::format("{} needs a tokenizer, but {} has no tokenizer.model: give ids",
                                flag, source.name()));
  }
  return tokenizer->Encode(text);
}

std::int64_t ContextOf(const ModelSource& source, const ParallelPlan& plan,
                       const ServingOptions& serving) {
  return LimitsOf(source.model(), plan, serving).context;
}

void CheckRequest(const GenerationRequest& request, const ModelSource& source,
                  const ParallelPlan& plan, const ServingOptions& serving) {
  const std::int64_t context = ContextOf(source, plan, serving);
  const std::optional<Rejection> rejection =
      Validate(request, {.vocabulary = source.model().vocabulary, .context = context});
  if (!rejection) return;
  std::string message = rejection->message;
  if (rejection->reason == Rejection::Reason::kTooLarge && context < source.model().context) {
    message +=
        fmt::format(" The model's context is {}: raise --kv-memory.", source.model().context);
  }
  throw UserError(ExitStatus::kUsage, message);
}

}  // namespace jubal

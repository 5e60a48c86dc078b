#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "launch/commands.h"
#include "launch/progress_line.h"
#include "launch/request_input.h"
#include "launch/world.h"
#include "runtime/decoder.h"
#include "runtime/engine.h"
#include "runtime/text_stream.h"

namespace jubal {
namespace {

constexpr std::int64_t kDefaultMaxTokens = 256;
constexpr RequestId kRequest = 1;

std::uint64_t RandomSeed() {
  std::random_device source;
  // 53 bits, so that the seed survives every JSON reader.
  return ((std::uint64_t{source()} << 32) | source()) >> 11;
}

SamplingParams Sampling(const SamplingOptions& given) {
  SamplingParams params;
  params.temperature = given.temperature.value_or(params.temperature);
  params.top_k = given.top_k.value_or(params.top_k);
  params.top_p = given.top_p.value_or(params.top_p);
  params.min_p = given.min_p.value_or(params.min_p);
  params.presence_penalty = given.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = given.frequency_penalty.value_or(params.frequency_penalty);
  params.repetition_penalty = given.repetition_penalty.value_or(params.repetition_penalty);
  params.seed = given.seed ? *given.seed : RandomSeed();
  return params;
}

GenerationRequest MakeRequest(const Options& options, const ModelSource& source,
                              const ParallelPlan& plan, const std::optional<Tokenizer>& tokenizer) {
  if (!tokenizer && !options.stop.empty()) {
    throw UserError(
        ExitStatus::kUsage,
        fmt::format("--stop needs a tokenizer, but {} has no tokenizer.model", source.name()));
  }
  GenerationRequest request;
  request.prompt = options.prompt_ids ? *options.prompt_ids
                                      : EncodeText(tokenizer, *options.prompt, source, "--prompt");
  request.sampling = Sampling(options.sampling);
  const std::int64_t room =
      ContextOf(source, plan, options.serving) - static_cast<std::int64_t>(request.prompt.size());
  request.max_tokens =
      options.max_tokens.value_or(std::clamp<std::int64_t>(room, 1, kDefaultMaxTokens));
  if (!options.ignore_eos) request.stop_ids = source.model().eos_ids;
  CheckRequest(request, source, plan, options.serving);
  return request;
}

/// The one generation: takes its events, prints its text as it comes or at the end as JSON.
class Generation {
 public:
  Generation(const Tokenizer* tokenizer, std::vector<std::string> stop, bool json)
      : text_stream_(tokenizer, std::move(stop)), json_(json) {}

  /// False when a stop string ended the text.
  bool Take(const GenerationEvent& event) {
    if (event.token) {
      ids_.push_back(*event.token);
      logprobs_.push_back(event.logprob);
      const TextStream::Delta delta = text_stream_.Append(*event.token);
      Add(delta.text);
      if (delta.stopped) return false;
    }
    if (event.finish) {
      Add(text_stream_.Finish());
      finish_reason_ = *event.finish == FinishReason::kStop ? "stop" : "length";
    }
    return true;
  }

  void Print() const {
    if (json_) {
      fmt::print("{}\n", nlohmann::json{{"text", text_},
                                        {"ids", ids_},
                                        {"logprobs", logprobs_},
                                        {"finish_reason", finish_reason_}}
                             .dump());
    } else {
      fmt::print("\n");
    }
    std::fflush(stdout);
  }

  std::size_t num_tokens() const { return ids_.size(); }
  const std::string& finish_reason() const { return finish_reason_; }

 private:
  void Add(const std::string& text) {
    text_ += text;
    if (json_ || text.empty()) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  }

  TextStream text_stream_;
  const bool json_;
  std::string text_;
  std::vector<TokenId> ids_;
  std::vector<double> logprobs_;  // a float's value as a double, so that it reads back exactly
  std::string finish_reason_ = "stop";
};

}  // namespace

int RunGenerate(const Options& options) {
  return RunAsRank([&](std::unique_ptr<Communicator> world) {
    std::optional<Tokenizer> tokenizer;
    GenerationRequest request;
    const SeatedRank rank = TakeSeat(options, std::move(world),
                                     [&](const ModelSource& source, const ParallelPlan& plan) {
                                       tokenizer = OpenTokenizer(source);
                                       request = MakeRequest(options, source, plan, tokenizer);
                                     });
    Decoder decoder(rank.source, rank.mesh, rank.serving, ProgressLine(rank.mesh.leader()),
                    rank.gpu.get());
    Engine engine(decoder, rank.serving);
    if (!rank.mesh.leader()) {
      engine.Run();
      return;
    }
    Generation generation(tokenizer ? &*tokenizer : nullptr, options.stop, options.json);
    const std::size_t prompt_tokens = request.prompt.size();
    const std::uint64_t seed = request.sampling.seed;
    const auto rejection =
        engine.Submit(kRequest, std::move(request), [&](const GenerationEvent& event) {
          if (!generation.Take(event)) engine.StopNow();
        });
    if (rejection) throw UserError(ExitStatus::kUsage, rejection->message);
    engine.StopWhenIdle();
    engine.Run();
    generation.Print();
    fmt::print(stderr, "{} tokens after a prompt of {}, ended by {}, seed {}\n",
               generation.num_tokens(), prompt_tokens, generation.finish_reason(), seed);
  });
}

}  // namespace jubal

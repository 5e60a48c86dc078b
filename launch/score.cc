#include <array>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <numeric>
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

namespace jubal {
namespace {

constexpr RequestId kRequest = 1;
constexpr std::size_t kMaxTextBytes = 64 << 20;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::array<char, 1 << 16> block{};
  while (file && text.size() <= kMaxTextBytes) {
    file.read(block.data(), block.size());  // a directory opens, but this fails
    text.append(block.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    throw UserError(ExitStatus::kNoInput, fmt::format("--text-file {} cannot be read", path));
  }
  if (text.size() > kMaxTextBytes) {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("--text-file {} has more than {} MiB, more than any context holds",
                                path, kMaxTextBytes >> 20));
  }
  return text;
}

GenerationRequest MakeRequest(const Options& options, const ModelSource& source,
                              const ParallelPlan& plan) {
  GenerationRequest request;
  request.prompt_logprobs = true;
  request.prompt = options.ids ? *options.ids
                               : EncodeText(OpenTokenizer(source), ReadFile(*options.text_file),
                                            source, "--text-file");
  if (request.prompt.size() < 2) {
    throw UserError(ExitStatus::kUsage,
                    fmt::format("{} has {} token{}: a score needs at least 2",
                                options.ids ? "--ids" : "--text-file", request.prompt.size(),
                                request.prompt.size() == 1 ? "" : "s"));
  }
  CheckRequest(request, source, plan, options.serving);
  return request;
}

void PrintScore(const std::vector<TokenId>& ids, const std::vector<float>& scores, bool json) {
  const std::vector<double> logprobs(scores.begin(), scores.end());  // reads back exactly
  const double sum = std::accumulate(logprobs.begin(), logprobs.end(), 0.0);
  const double perplexity = std::exp(-sum / static_cast<double>(logprobs.size()));
  if (json) {
    fmt::print(
        "{}\n",
        nlohmann::json{{"ids", ids}, {"logprobs", logprobs}, {"perplexity", perplexity}}.dump());
  } else {
    fmt::print("{} tokens, log probability {:.4f}, perplexity {:.4f}\n", ids.size(), sum,
               perplexity);
  }
}

}  // namespace

int RunScore(const Options& options) {
  return RunAsRank([&](std::unique_ptr<Communicator> world) {
    GenerationRequest request;
    const SeatedRank rank = TakeSeat(options, std::move(world),
                                     [&](const ModelSource& source, const ParallelPlan& plan) {
                                       request = MakeRequest(options, source, plan);
                                     });
    Decoder decoder(rank.source, rank.mesh, rank.serving, ProgressLine(rank.mesh.leader()),
                    rank.gpu.get());
    Engine engine(decoder, rank.serving);
    if (!rank.mesh.leader()) {
      engine.Run();
      return;
    }
    std::vector<float> scores;
    const auto rejection = engine.Submit(kRequest, request, [&](const GenerationEvent& event) {
      scores.insert(scores.end(), event.prompt_logprobs.begin(), event.prompt_logprobs.end());
    });
    if (rejection) throw UserError(ExitStatus::kUsage, rejection->message);
    engine.StopWhenIdle();
    engine.Run();
    PrintScore(request.prompt, scores, options.json);
  });
}

}  // namespace jubal

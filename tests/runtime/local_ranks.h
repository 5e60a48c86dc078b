#ifndef JUBAL_TESTS_RUNTIME_LOCAL_RANKS_H_
#define JUBAL_TESTS_RUNTIME_LOCAL_RANKS_H_

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/gpu.h"
#include "parallel/mesh.h"
#include "parallel/plan.h"
#include "runtime/decoder.h"
#include "runtime/engine.h"
#include "runtime/model_source.h"

namespace jubal {

/// How a test divides a model over ranks that are threads of the test.
struct TestPlan {
  int ranks = 1;
  Exchange exchange = Exchange::kReplicated;
  std::optional<int> expert_parallel = std::nullopt;
  int data_parallel = 1;
  // Opens a GPU for each rank, which then computes there; without it the CPU does.
  std::function<std::unique_ptr<Gpu>()> open_gpu = nullptr;
  // What ranks with GPUs talk through, made of a world of threads. None: the host's memory.
  std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)> over_world = nullptr;

  std::string ToString() const;
};

/// What became of one request.
struct Generated {
  std::vector<float> prompt_logprobs;
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::optional<FinishReason> finish;

  bool operator==(const Generated&) const = default;  // bit for bit
};

/// Runs `work` on every rank of the plan, each a thread with a decoder of its own; what one throws
/// is thrown here.
void OnEveryRank(const std::filesystem::path& model, const TestPlan& plan, ServingOptions options,
                 const std::function<void(Decoder&)>& work);

/// A sink that writes a request's events down.
EventSink RecordInto(Generated& result);

/// Runs all requests at once through engines on the plan's ranks, to their ends.
std::vector<Generated> Generate(const std::filesystem::path& model, const TestPlan& plan,
                                const ServingOptions& options,
                                const std::vector<GenerationRequest>& requests);

/// Logits of every token of one sequence, [tokens, vocabulary], from one prefill of `chunk` tokens
/// a step, or all in one step.
std::vector<std::vector<float>> TeacherForcedLogits(const std::filesystem::path& model,
                                                    const TestPlan& plan,
                                                    const ServingOptions& options,
                                                    const std::vector<TokenId>& tokens);

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_LOCAL_RANKS_H_

#ifndef JUBAL_LAUNCH_OPTIONS_H_
#define JUBAL_LAUNCH_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"
#include "launch/gpu_driver.h"
#include "parallel/plan.h"
#include "runtime/memory_plan.h"
#include "runtime/model_source.h"
#include "runtime/request.h"
#include "runtime/token.h"

namespace jubal {

enum class Command {
  kServe,
  kRank,
  kGenerate,
  kScore,
  kBench,
  kChat,
  kInspect,
  kPlan,
  kPack,
  kCoordinator,
  kVersion,
  kHelp,
};

/// How tokens are drawn, as far as the user said.
struct SamplingOptions {
  std::optional<float> temperature;
  std::optional<std::int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<float> repetition_penalty;
  std::optional<std::uint64_t> seed;
};

/// What jubal bench measures, and how it prints that.
struct BenchOptions {
  std::optional<SyntheticShape> synthetic;  // else options.model
  std::int64_t prefill = 512;               // tokens; 0: no such test
  std::int64_t decode = 32;                 // steps; 0: no such test
  std::vector<std::int64_t> batches{1, 8, 16};
  std::vector<std::int64_t> depths{0};
  std::vector<int> scaling;  // numbers of ranks to start; empty: none, this is a rank
  bool csv = false;
};

/// The command line, read and checked as far as that is possible without the model. A flag means
/// the same in every command that takes it.
struct Options {
  Command command = Command::kHelp;
  std::string help;  // kHelp: what to print

  std::string model;  // a directory; for plan and inspect perhaps a published name
  int ranks = 1;
  Exchange exchange = Exchange::kReplicated;
  std::optional<int> expert_parallel;
  int data_parallel = 1;
  std::optional<int> threads;
  std::optional<CpuIsa> isa;
  std::optional<Device> device;  // none: GPUs if there are any
  GpuDriver gpus;                // main() sets it
  ServingOptions serving;
  std::optional<std::int64_t> device_memory;
  bool json = false;
  bool verify = false;

  std::string output;                 // pack: the new model directory
  std::optional<WeightType> weights;  // pack: what matrices of more bits become; bench: synthetic

  std::optional<std::string> prompt;
  std::optional<std::vector<TokenId>> prompt_ids;
  std::optional<std::vector<TokenId>> ids;
  std::optional<std::string> text_file;
  std::optional<std::int64_t> max_tokens;
  SamplingOptions sampling;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  BenchOptions bench;

  std::string listen = "127.0.0.1:50051";
  bool insecure = false;  // other hosts may connect without encryption and token
  std::optional<std::string> hostfile;
  std::optional<std::string> control_host;
  std::vector<std::string> mpirun_arguments;
  std::string server = "127.0.0.1:50051";

  std::string coordinator;  // rank: where the coordinator is
  std::uint32_t epoch = 1;
  std::string control;  // coordinator: where ranks connect
  int supervisor_fd = -1;

  /// serve and bench: the flags given that mean something to the ranks that they start, too, ready
  /// for those ranks' command line.
  std::vector<std::string> rank_arguments;
};

/// Reads the command line, without the program's name. Throws UserError(kUsage).
Options ParseCommandLine(std::span<const std::string> arguments);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_OPTIONS_H_

#ifndef JUBAL_RUNTIME_STEP_BENCHMARK_H_
#define JUBAL_RUNTIME_STEP_BENCHMARK_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/decoder.h"
#include "runtime/logit_reader.h"
#include "runtime/model_source.h"
#include "runtime/step_plan.h"
#include "runtime/step_work.h"

namespace jubal {

/// One kind of step to be timed.
struct StepTest {
  enum class Kind : std::uint8_t { kPrefill, kDecode };

  Kind kind = Kind::kDecode;
  std::int64_t tokens = 0;  // kPrefill: of the prompt; kDecode: of each sequence, one in each step
  std::int64_t batch = 1;   // sequences, in all data groups together; 1 for kPrefill
  std::int64_t depth = 0;   // tokens that every sequence has before
};

/// What came out, for all ranks together.
struct StepResult {
  double tokens_per_second = 0;   // of the whole batch: the median of the runs
  double stddev = 0;              // of the runs' tokens per second
  double bytes_per_step = 0;      // the mean of the steps (StepWork)
  double read_bandwidth = 0;      // bytes per second: the median of those before and after the runs
  double bandwidth_ratio = 0;     // bytes_per_step per second, over read_bandwidth
  double peak = 0;                // operations per second
  double compute_ratio = 0;       // operations (StepWork) per second, over peak
  std::uint64_t tokens_hash = 0;  // of the tokens drawn, greedily, in all runs, and of the bits of
                                  // their log probabilities: the same for every plan
};

/// Called on the leader: steps done, and in all.
using StepProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Times a decoder on steps like those of a server under a constant load: the leader broadcasts the
/// plan of each, all ranks execute it, the leader draws the next tokens from the logits. Tokens and
/// the keys and values before them are random and the same for every plan; the tokens drawn are not
/// fed back, since a model of random weights would repeat itself. Between the runs all ranks read
/// their weights at the same time: the bandwidth that the steps are held against. On GPUs that is
/// what a kernel reads (kernels/gpu_limits.h).
///
/// Every rank constructs one and makes the same calls. No test may go beyond the decoder's limits.
class StepBenchmark {
 public:
  /// `decoder`, made from the same source and options, must outlive this. Collective.
  StepBenchmark(Decoder& decoder, const ModelSource& source, const ServingOptions& options);

  /// One step unmeasured, then a few runs of the test. The result is the leader's; other ranks
  /// return an empty one. Collective. Throws UserError on the leader when logits are not finite.
  StepResult Run(const StepTest& test, const StepProgress& progress);

 private:
  struct Drawn {
    TokenId token = 0;
    float logprob = 0;
  };

  std::int64_t StepsOf(const StepTest& test) const;
  StepPlan PlanOf(const StepTest& test, std::int64_t run, std::int64_t step) const;
  void FillKeysAndValues(const StepTest& test);
  void Execute(const StepPlan& plan, Drawn* drawn);
  void Meet();
  double ReadBandwidth();
  double Peak();
  std::int64_t BytesOfRuns(const StepTest& test, std::vector<std::uint8_t> touched);

  Decoder& decoder_;
  LogitReader reader_;
  const StepWork work_;
  const std::int64_t prefill_chunk_;
  WeightType expert_type_ = WeightType::kF32;
  std::int64_t read_bytes_ = 0;  // of each rank, in one measurement of the bandwidth
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_STEP_BENCHMARK_H_

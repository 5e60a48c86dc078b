#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kernels/cpu_isa.h"
#include "kernels/error.h"
#include "kernels/threads.h"
#include "launch/bench_scaling.h"
#include "launch/bench_table.h"
#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/memory_size.h"
#include "launch/progress_line.h"
#include "launch/world.h"
#include "parallel/mpi_communicator.h"
#include "runtime/decoder.h"
#include "runtime/step_benchmark.h"

namespace jubal {
namespace {

/// Prompts up to this long are computed in one step.
constexpr std::int64_t kMaxPrefillChunk = 512;

std::string NameOf(const StepTest& test) {
  return fmt::format("{}{}", test.kind == StepTest::Kind::kPrefill ? "pp" : "tg", test.tokens);
}

std::vector<StepTest> TestsOf(const BenchOptions& bench) {
  std::vector<StepTest> tests;
  if (bench.prefill > 0) {
    tests.push_back({StepTest::Kind::kPrefill, bench.prefill, /*batch=*/1, /*depth=*/0});
  }
  if (bench.decode == 0) return tests;
  for (const std::int64_t depth : bench.depths) {
    for (const std::int64_t batch : bench.batches) {
      tests.push_back({StepTest::Kind::kDecode, bench.decode, batch, depth});
    }
  }
  return tests;
}

/// Exactly what the largest test needs.
ServingOptions ServingFor(const Options& options) {
  const BenchOptions& bench = options.bench;
  ServingOptions serving = options.serving;  // of which --kv counts
  serving.prefill_chunk = std::clamp<std::int64_t>(bench.prefill, 1, kMaxPrefillChunk);
  serving.max_running = 1;
  serving.context = 0;
  for (const StepTest& test : TestsOf(bench)) {
    serving.max_running = std::max(
        serving.max_running, (test.batch + options.data_parallel - 1) / options.data_parallel);
    serving.context = std::max(*serving.context, test.depth + test.tokens);
  }
  serving.kv_memory = std::numeric_limits<std::int64_t>::max();
  return serving;
}

void CheckTests(const std::vector<StepTest>& tests, const ModelSource& source) {
  for (const StepTest& test : tests) {
    if (test.depth + test.tokens <= source.model().context) continue;
    throw UserError(
        ExitStatus::kUsage,
        fmt::format("{} at depth {} needs {} positions, but the context of {} has {}", NameOf(test),
                    test.depth, test.depth + test.tokens, source.name(), source.model().context));
  }
}

/// Of the experts, which are most of a model.
WeightType MainWeightType(const ModelSource& source) {
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    if (source.weights()[i].expert_stack) return source.format(i).type;
  }
  return WeightType::kF32;
}

std::string_view NameOf(KvType type) {
  switch (type) {
    case KvType::kF32:
      return "f32";
    case KvType::kInt16:
      return "f16";
    case KvType::kInt8:
      return "int8";
  }
  return "";
}

/// What the figures depend on beside the plan, which TakeSeat has told.
void ReportMachine(const SeatedRank& rank) {
  const std::int64_t bytes = rank.source.stored_bytes();
  std::int64_t cache = LastLevelCacheBytes();
  if (rank.gpu != nullptr) {
    cache = rank.gpu->info().cache_bytes * rank.mesh.plan.world();
    fmt::print(stderr, "{} on each rank", rank.gpu->info().name);
  } else {
    fmt::print(stderr, "{}, {} thread{} on each rank, {}", ProcessorName(), MostThreads(),
               MostThreads() == 1 ? "" : "s", NameOf(ActiveCpuIsa()));
  }
  fmt::print(stderr, "; weights {}, experts in {}\n", MemorySizeText(bytes),
             NameOf(MainWeightType(rank.source)));
  if (bytes <= cache) {
    fmt::print(stderr,
               "the weights fit the last-level cache of {}: these figures say nothing about "
               "memory\n",
               MemorySizeText(cache));
  }
}

BenchRow RowOf(const StepTest& test, const StepResult& result, const SeatedRank& rank,
               const Options& options) {
  const ParallelPlan& plan = rank.mesh.plan;
  return {{"test", NameOf(test)},
          {"batch", test.batch},
          {"depth", test.depth},
          {"ranks", plan.world()},
          {"tokens_per_second", result.tokens_per_second},
          {"stddev", result.stddev},
          {"bytes_per_step", result.bytes_per_step},
          {"read_bandwidth", result.read_bandwidth},
          {"bandwidth_ratio", result.bandwidth_ratio},
          {"peak", result.peak},
          {"compute_ratio", result.compute_ratio},
          {"bytes_per_second", result.bandwidth_ratio * result.read_bandwidth},
          {"operations_per_second", result.compute_ratio * result.peak},
          // Of the speed at which one of the two limits is met.
          {"roofline_ratio", std::max(result.bandwidth_ratio, result.compute_ratio)},
          {"device", rank.gpu != nullptr ? rank.gpu->info().name : "cpu"},
          {"plan", plan.ToString()},
          {"exchange", plan.exchange == Exchange::kReplicated ? "replicated" : "alltoall"},
          {"threads", MostThreads()},
          {"isa", NameOf(ActiveCpuIsa())},
          {"model", rank.source.name()},
          {"weights", NameOf(MainWeightType(rank.source))},
          {"kv", NameOf(options.serving.kv_type)},
          {"tokens_hash", fmt::format("{:016x}", result.tokens_hash)}};
}

void Measure(const Options& options, std::unique_ptr<Communicator> world) {
  const std::vector<StepTest> tests = TestsOf(options.bench);
  const SeatedRank rank =
      TakeSeat(options, std::move(world),
               [&](const ModelSource& source, const ParallelPlan&) { CheckTests(tests, source); });
  RequireMemory(rank);
  const bool leader = rank.mesh.leader();
  Decoder decoder(rank.source, rank.mesh, rank.serving, ProgressLine(leader), rank.gpu.get());
  if (leader) ReportMachine(rank);
  StepBenchmark benchmark(decoder, rank.source, rank.serving);
  BenchTable table(options);
  for (std::size_t i = 0; i < tests.size(); ++i) {
    const StepTest& test = tests[i];
    StepProgress progress;
    if (leader) {
      progress = TestProgressLine(fmt::format("test {} of {}, {} at batch {} and depth {}", i + 1,
                                              tests.size(), NameOf(test), test.batch, test.depth));
    }
    const StepResult result = benchmark.Run(test, progress);
    if (leader) table.Add(RowOf(test, result, rank, options));
  }
  if (leader) table.Finish();
}

}  // namespace

int RunBench(const Options& options) {
  if (options.bench.scaling.empty()) {
    Options measured = options;
    measured.serving = ServingFor(options);
    return RunAsRank(
        [&](std::unique_ptr<Communicator> world) { Measure(measured, std::move(world)); });
  }
  if (MpiSession::Launched()) {
    throw UserError(ExitStatus::kUsage,
                    "--scaling starts mpirun itself: run it without a launcher");
  }
  // What cannot work is refused before the first run.
  const ModelSource source = OpenModel(options);
  CheckTests(TestsOf(options.bench), source);
  for (const int ranks : options.bench.scaling) {
    MakePlan(ranks, static_cast<int>(source.model().experts), options.exchange,
             options.expert_parallel, options.data_parallel);
  }
  return RunScaling(options);
}

}  // namespace jubal

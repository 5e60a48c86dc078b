// The whole of runtime on GPUs, which here are emulated: what a user gets has the bits that a CPU
// gives.

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/copy.h"
#include "kernels/gpu_limits.h"
#include "kernels/run.h"
#include "parallel/local_communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/mapped_weights.h"
#include "runtime/pack_writer.h"
#include "runtime/random_weights.h"
#include "runtime/step_benchmark.h"
#include "runtime/weight_loader.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"
#include "tests/parallel/device_world.h"
#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/scratch_directory.h"
#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

std::filesystem::path Grok() { return GoldenDirectory() / "grok1-gqa6"; }

TestPlan OnGpus(TestPlan plan) {
  plan.open_gpu = [] {
    std::unique_ptr<Gpu> gpu = OpenEmulatedGpu();
    // What an emulated GPU can do at most says nothing, and takes long to measure.
    gpu_measurements = {.read_bandwidth = [](ConstTensorView, Stream&) { return 1e9; },
                        .peak = [](WeightType, Stream&) { return 1e9; }};
    return gpu;
  };
  return plan;
}

/// Greedy and drawn generations and a scored prompt.
std::vector<GenerationRequest> Requests() {
  std::vector<GenerationRequest> requests;
  for (int r = 0; r < 4; ++r) {
    GenerationRequest request;
    for (int i = 0; i < 3 + 9 * r; ++i) request.prompt.push_back(1 + (i * 37 + r * 101) % 500);
    request.sampling.temperature = r % 2 == 0 ? 0.0f : 0.9f;
    request.sampling.repetition_penalty = r == 1 ? 1.2f : 1.0f;
    request.sampling.seed = 1000u + static_cast<unsigned>(r);
    request.max_tokens = r == 3 ? 0 : 4 + r;
    request.prompt_logprobs = r >= 2;
    requests.push_back(request);
  }
  return requests;
}

constexpr ServingOptions kOptions{.prefill_chunk = 16, .max_running = 12, .context = 64};

// Breaks: a user of GPUs gets other answers than one of CPUs.
TEST(GpuRanksTest, GenerateWhatCpusGenerate) {
  const std::vector<GenerationRequest> requests = Requests();
  const std::vector<Generated> expected = Generate(Grok(), {}, kOptions, requests);
  for (const TestPlan& plan :
       {TestPlan{}, TestPlan{.ranks = 2},
        TestPlan{.ranks = 4, .expert_parallel = 2, .data_parallel = 2},
        TestPlan{.ranks = 3, .exchange = Exchange::kAllToAll, .expert_parallel = 3}}) {
    EXPECT_TRUE(Generate(Grok(), OnGpus(plan), kOptions, requests) == expected) << plan.ToString();
  }
}

// Breaks: the inputs of a step that nobody waits for are overwritten by those of a later one.
TEST(GpuRanksTest, StepsOfALongPromptFollowEachOther) {
  constexpr ServingOptions kSmallChunks{.prefill_chunk = 4, .max_running = 2, .context = 64};
  GenerationRequest request;
  for (int i = 0; i < 45; ++i) request.prompt.push_back(1 + (i * 29) % 500);
  request.sampling.temperature = 0;
  request.max_tokens = 3;
  EXPECT_TRUE(Generate(Grok(), OnGpus({}), kSmallChunks, {request}) ==
              Generate(Grok(), {}, kSmallChunks, {request}));
}

/// Logits of a step's rows, in the order of logit_rows.
std::vector<std::vector<float>> LogitsOf(Decoder& decoder, const StepPlan& plan) {
  std::vector<std::vector<float>> rows;
  for (const GroupStep& group : plan.groups) rows.resize(rows.size() + group.logit_rows.size());
  decoder.Forward(plan, [&](std::int64_t first, ConstTensorView logits) {
    for (std::int64_t r = 0; r < logits.size(0); ++r) {
      std::vector<float>& row = rows[static_cast<std::size_t>(first + r)];
      row.resize(static_cast<std::size_t>(logits.size(1)));
      Run(Copy{.out = {reinterpret_cast<std::byte*>(row.data()), DType::kF32,
                       Shape{1, logits.size(1)}},
               .x = logits.Rows(r, 1)},
          decoder.stream());
    }
  });
  decoder.Wait();
  return rows;
}

/// Steps that decode batches of changing size, in which sequences grow over the end of a page, and
/// between them a step that decodes and takes a prompt. The second data group is idle at first.
std::vector<StepPlan> DecodeSteps(int data_groups) {
  constexpr int kPages = 2;
  constexpr int kSequences = 7;
  std::vector<StepPlan> plans;
  std::vector<std::vector<std::int32_t>> lengths(static_cast<std::size_t>(data_groups),
                                                 std::vector<std::int32_t>(kSequences, 0));
  for (int step = 0; step < 44; ++step) {
    StepPlan plan;
    for (int g = 0; g < data_groups; ++g) {
      GroupStep group;
      group.max_pages = kPages;
      // Sequence 0 takes part always, the others from time to time and for a while.
      for (std::int32_t s = 0; s < kSequences; ++s) {
        const bool present = (s == 0 || (step > 28 && step % 4 >= s % 4) || step == s) &&
                             (g == 0 || step > 30 || (step > 5 && s < 2));
        if (!present) continue;
        const auto row = static_cast<std::int32_t>(group.page_table.size()) / kPages;
        group.page_table.insert(group.page_table.end(), {s, 13 - s});
        const bool prompt = step == 38 && s == 0 && g == 0;
        for (int i = 0; i < (prompt ? 3 : 1); ++i) {
          group.tokens.push_back((step * 31 + s * 7 + g * 3 + i + 1) % 500);
          group.positions.push_back(
              lengths[static_cast<std::size_t>(g)][static_cast<std::size_t>(s)]++);
          group.sequences.push_back(row);
        }
        group.logit_rows.push_back(group.num_tokens() - 1);
      }
      plan.groups.push_back(group);
    }
    plans.push_back(plan);
  }
  return plans;
}

/// Runs the steps on the plan's ranks with GPUs, which record `graphs` of them.
void ExpectGraphsGiveTheBitsOfCpus(TestPlan plan, std::int64_t graphs) {
  const std::vector<StepPlan> steps = DecodeSteps(plan.data_parallel);
  std::vector<std::vector<std::vector<float>>> expected;
  OnEveryRank(Grok(), plan, kOptions, [&](Decoder& decoder) {
    for (const StepPlan& step : steps) {
      std::vector<std::vector<float>> logits = LogitsOf(decoder, step);
      if (decoder.mesh().leader()) expected.push_back(std::move(logits));
    }
  });
  plan = OnGpus(plan);
  plan.over_world = [](std::unique_ptr<Communicator> world) {
    return std::make_unique<EnqueuedCommunicator>(std::move(world));
  };
  OnEveryRank(Grok(), plan, kOptions, [&](Decoder& decoder) {
    EXPECT_EQ(decoder.GraphRows(), (std::vector<std::int64_t>{1, 2, 4, 8, 12}));
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const std::vector<std::vector<float>> logits = LogitsOf(decoder, steps[i]);
      if (decoder.mesh().leader()) {
        EXPECT_TRUE(logits == expected[i]) << "step " << i;
      }
    }
    EXPECT_EQ(decoder.num_graphs(), graphs);
  });
}

// Breaks: a batch that is filled up, or a graph that is replayed with other tokens, other
// sequences or more pages than it was recorded with, gives other bits.
TEST(GpuRanksTest, GraphsGiveTheBitsOfCpus) {
  ExpectGraphsGiveTheBitsOfCpus({}, /*graphs=*/4);  // of 1, 2, 4 and 8 rows
}

// Breaks: data groups fill up their batches to different sizes, or one that is idle is not.
TEST(GpuRanksTest, GraphsOfSeveralRanksGiveTheBitsOfCpus) {
  ExpectGraphsGiveTheBitsOfCpus({.ranks = 4, .expert_parallel = 2, .data_parallel = 2},
                                /*graphs=*/6);  // those, and two with an idle group
}

// Breaks: the experts that bench counts, of rows that only fill up a batch.
TEST(GpuRanksTest, ObserversSeeTheRoutingOfTheStepsRows) {
  const StepPlan step = DecodeSteps(1)[32];
  std::vector<std::vector<std::int32_t>> seen[2];
  for (int device = 0; device < 2; ++device) {
    OnEveryRank(Grok(), device == 0 ? TestPlan{} : OnGpus({}), kOptions, [&](Decoder& decoder) {
      decoder.ObserveRouting([&](std::int64_t layer, ConstTensorView topk_ids) {
        EXPECT_EQ(layer, static_cast<std::int64_t>(seen[device].size()));
        EXPECT_EQ(topk_ids.size(0), step.groups[0].num_tokens());
        const auto* ids = topk_ids.data<std::int32_t>();
        seen[device].emplace_back(ids, ids + topk_ids.shape().elements());
      });
      LogitsOf(decoder, step);
    });
  }
  EXPECT_EQ(seen[1], seen[0]);
  EXPECT_EQ(seen[0].size(), 3u);
}

// Breaks: recording in the middle of serving, where it would hold up all requests.
TEST(GpuRanksTest, WarmUpRecordsEveryGraph) {
  OnEveryRank(Grok(), OnGpus({}), kOptions, [&](Decoder& decoder) {
    Engine engine(decoder, kOptions);
    engine.WarmUp();
    EXPECT_EQ(decoder.num_graphs(), static_cast<std::int64_t>(decoder.GraphRows().size()));
  });
}

std::vector<std::byte> BytesOf(ConstTensorView memory, Stream& stream) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(memory.bytes()));
  Run(Copy{.out = {bytes.data(), DType::kU8, memory.shape()}, .x = memory}, stream);
  stream.Synchronize();
  return bytes;
}

/// The weights of one rank of several, without the others.
std::vector<std::byte> WeightsOf(const ModelSource& source, const ParallelPlan& plan, int rank,
                                 Gpu* gpu) {
  Mesh mesh;
  mesh.plan = plan;
  mesh.seat = SeatOf(plan, rank);
  mesh.world = std::move(MakeLocalWorld(1).front());
  mesh.node = std::move(MakeLocalWorld(1).front());
  ServingOptions options;
  std::unique_ptr<Stream> stream =
      gpu == nullptr ? std::make_unique<Stream>() : std::make_unique<Stream>(*gpu);
  options.device = stream->device();
  const MemoryPlan memory = PlanMemory(source, plan, mesh.seat, options);
  Arena arena = gpu == nullptr ? Arena(memory.weight_bytes) : Arena(*gpu, memory.weight_bytes);
  std::vector<LoadState> states;
  const LoadProgress progress = [&](const LoadState& state) { states.push_back(state); };
  if (source.packed()) {
    UploadPack(source, mesh, arena, stream->gpu(), progress);
  } else if (source.has_files()) {
    LoadWeights(source, mesh, arena, *stream, progress);
  } else {
    RandomWeights(source, mesh, arena, *stream, progress);
  }
  EXPECT_EQ(arena.bytes_left(), 0);
  EXPECT_EQ(states.back().done, states.back().total);
  return BytesOf(arena.memory(), *stream);
}

// Breaks: GPUs compute with other weights. Every way of loading ends in the same bytes.
TEST(GpuRanksTest, HoldTheWeightsOfCpus) {
  const std::unique_ptr<Gpu> gpu = OpenEmulatedGpu();
  const ScratchDirectory scratch;
  WritePack(ModelSource::Open(Grok()), {}, scratch.path(), [](std::int64_t, std::int64_t) {});
  const ModelSource loaded = ModelSource::Open(Grok());
  const ModelSource other_family = ModelSource::Open(GoldenDirectory() / "mixtral");
  const ModelSource packed = ModelSource::Open(scratch.path());
  const ModelSource random = ModelSource::Synthetic({.hidden = 72,
                                                     .heads = 6,
                                                     .kv_heads = 3,
                                                     .head_dim = 20,
                                                     .experts = 8,
                                                     .top_k = 2,
                                                     .expert_hidden = 200,
                                                     .layers = 2,
                                                     .vocabulary = 333},
                                                    WeightType::kInt4);
  for (const auto& [ranks, rank] : {std::pair{1, 0}, {3, 1}}) {
    const ParallelPlan plan = MakePlan(ranks, 8, Exchange::kReplicated, {}, 1);
    const std::vector<std::byte> expected = WeightsOf(loaded, plan, rank, nullptr);
    EXPECT_TRUE(WeightsOf(loaded, plan, rank, gpu.get()) == expected) << ranks;
    EXPECT_TRUE(WeightsOf(packed, plan, rank, gpu.get()) == expected) << ranks;
    for (const ModelSource* source : {&other_family, &random}) {
      EXPECT_TRUE(WeightsOf(*source, plan, rank, gpu.get()) ==
                  WeightsOf(*source, plan, rank, nullptr))
          << source->name() << " " << ranks;
    }
  }
}

// Breaks: the budget that is printed for GPUs is not what they take. The decoder itself checks that
// not a byte of its arenas is left or missing.
TEST(GpuRanksTest, PlanEveryByteOfTheirMemory) {
  const ModelSource source = ModelSource::Open(Grok());
  ServingOptions options = kOptions;
  options.device = Device::kCuda;
  for (const int ranks : {1, 4}) {
    const ParallelPlan plan = MakePlan(ranks, 8, Exchange::kReplicated, {}, 1);
    for (int rank = 0; rank < ranks; ++rank) {
      const MemoryPlan memory = PlanMemory(source, plan, SeatOf(plan, rank), options);
      std::int64_t lines = 0;
      for (const MemoryLine& line : memory.lines) lines += line.bytes;
      EXPECT_EQ(lines, memory.total() + memory.pinned_bytes + memory.pinned_loading_bytes);
      EXPECT_GT(memory.pinned_bytes, 0);
      EXPECT_GE(memory.limits.logit_rows, memory.limits.max_sequences);
    }
  }
}

// Breaks: figures of GPUs that computed something else, or whose limits were not measured.
TEST(GpuRanksTest, BenchmarkDrawsWhatCpusDraw) {
  const std::vector<StepTest> tests{
      {StepTest::Kind::kPrefill, /*tokens=*/20, /*batch=*/1, /*depth=*/5},
      {StepTest::Kind::kDecode, /*tokens=*/2, /*batch=*/5, /*depth=*/30}};
  std::vector<StepResult> results;
  for (const TestPlan& plan : {TestPlan{}, OnGpus({}), OnGpus({.ranks = 2, .data_parallel = 2})}) {
    OnEveryRank(Grok(), plan, kOptions, [&](Decoder& decoder) {
      StepBenchmark benchmark(decoder, ModelSource::Open(Grok()), kOptions);
      for (const StepTest& test : tests) {
        const StepResult result = benchmark.Run(test, {});
        if (decoder.mesh().leader()) results.push_back(result);
      }
    });
  }
  ASSERT_EQ(results.size(), 6u);
  for (std::size_t i = 2; i < results.size(); ++i) {
    EXPECT_EQ(results[i].tokens_hash, results[i % 2].tokens_hash);
    EXPECT_GT(results[i].bandwidth_ratio, 0);
    EXPECT_GT(results[i].compute_ratio, 0);
  }
  EXPECT_EQ(results[2].bytes_per_step, results[0].bytes_per_step);
  EXPECT_EQ(results[3].bytes_per_step, results[1].bytes_per_step);
}

// Breaks: a damaged file is served by GPUs, or its error does not name the tensor.
TEST(GpuRanksTest, RefuseWeightsThatAreNotFinite) {
  const ScratchDirectory scratch;
  const std::filesystem::path model = scratch.path() / "model";
  std::filesystem::copy(Grok(), model, std::filesystem::copy_options::recursive);
  const auto place =
      static_cast<std::streamoff>(Checkpoint::Open(model).Find("tensor00000_000")->offset) +
      4 * 777;
  std::fstream file(model / "ckpt-0/tensor00000_000",
                    std::ios::in | std::ios::out | std::ios::binary);
  const float infinite = std::numeric_limits<float>::infinity();
  file.seekp(place).write(reinterpret_cast<const char*>(&infinite), 4);
  file.close();
  ExpectUserError(ExitStatus::kBadData,
                  [&] { OnEveryRank(model, OnGpus({}), kOptions, [](Decoder&) {}); },
                  {"tensor00000_000"});
}

}  // namespace
}  // namespace jubal

// If a token met the wrong expert, or its outputs were added in another order, a server would
// answer differently under another plan; a wrong row count leaves ranks waiting for each other.

#include "parallel/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/arena.h"
#include "kernels/chunks.h"
#include "kernels/error.h"
#include "tests/parallel/device_world.h"

namespace jubal {
namespace {

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

constexpr std::int64_t kHidden = 256;  // 33 tokens are then beyond the form for small batches
constexpr std::int64_t kMaxTokens = 33;

/// What is brought to the experts in one step, over all data groups in order.
struct StepInput {
  std::vector<std::int64_t> tokens_of_group;
  Floats x;
  Ids ids;
  Floats weights;
};

StepInput MakeStep(const std::vector<std::int64_t>& tokens_of_group, int experts, int top_k,
                   unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  StepInput step{.tokens_of_group = tokens_of_group, .x = {}, .ids = {}, .weights = {}};
  Ids all_experts(static_cast<std::size_t>(experts));
  std::iota(all_experts.begin(), all_experts.end(), 0);
  const auto tokens = std::accumulate(tokens_of_group.begin(), tokens_of_group.end(), 0L);
  for (long t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < kHidden; ++i) step.x.push_back(normal(random));
    std::shuffle(all_experts.begin(), all_experts.end(), random);
    // Every third token takes the first experts: the worst case of one group's rows.
    if (t % 3 == 0) std::iota(all_experts.begin(), all_experts.end(), 0);
    for (int j = 0; j < top_k; ++j) {
      step.ids.push_back(all_experts[static_cast<std::size_t>(j)]);
      step.weights.push_back(normal(random));
    }
  }
  return step;
}

/// Stands in for an expert: its partial product over one chunk, element i.
float FakePartial(const float* x, std::int64_t expert, int chunk, std::int64_t i) {
  const float neighbour = x[(i + 7 * chunk + 1) % kHidden];
  return (x[i] * x[i] - neighbour * static_cast<float>(expert + 1)) /
         (1.0f + neighbour * neighbour * static_cast<float>(chunk + 1));
}

float FakeSubtree(const float* x, std::int64_t expert, Subtree subtree, std::int64_t i) {
  if (subtree.num_chunks == 1) return FakePartial(x, expert, subtree.first_chunk, i);
  const int half = subtree.num_chunks / 2;
  return FakeSubtree(x, expert, {subtree.first_chunk, half}, i) +
         FakeSubtree(x, expert, {subtree.first_chunk + half, half}, i);
}

void ComputeExperts(const ExpertBatch& batch, Range experts, const std::vector<Subtree>& subtrees) {
  const std::int32_t* offsets = batch.offsets.data<std::int32_t>();
  for (std::size_t s = 0; s < subtrees.size(); ++s) {
    const TensorView partials = batch.partials.Rows(static_cast<std::int64_t>(s), 1)
                                    .Reshaped({batch.partials.size(1), kHidden});
    for (std::int64_t e = 0; e < experts.size(); ++e) {
      for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
        for (std::int64_t i = 0; i < kHidden; ++i) {
          partials.row<float>(r)[i] =
              FakeSubtree(batch.tokens.row<float>(r), experts.begin + e, subtrees[s], i);
        }
      }
    }
  }
}

/// The outputs by the definition, without an exchange.
Floats Expected(const StepInput& step, int top_k) {
  const std::size_t tokens = step.x.size() / kHidden;
  Floats out(step.x.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    const float* x = &step.x[t * kHidden];
    std::vector<std::size_t> order(static_cast<std::size_t>(top_k));
    std::iota(order.begin(), order.end(), t * order.size());
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return step.ids[a] < step.ids[b]; });
    for (std::int64_t i = 0; i < kHidden; ++i) {
      float& sum = out[t * kHidden + static_cast<std::size_t>(i)];
      for (std::size_t place = 0; place < order.size(); ++place) {
        const std::size_t j = order[place];
        const float term = step.weights[j] * FakeSubtree(x, step.ids[j], {0, kChunks}, i);
        sum = place == 0 ? term : sum + term;
      }
    }
  }
  return out;
}

/// A rank's memory of that many bytes, followed by bytes that must stay as they are.
class GuardedMemory {
 public:
  GuardedMemory(std::int64_t bytes, Communicator& node, Stream& stream)
      : stream_(stream),
        arena_(NewArenaFor(node, bytes + kGuard, stream)),
        memory_(arena_.Take(DType::kU8, {bytes + kGuard})) {
    Upload(memory_, Bytes(static_cast<std::size_t>(memory_.bytes()), kPoison), stream);
  }

  TensorView view() const { return memory_.Rows(0, memory_.bytes() - kGuard); }
  bool intact() const {
    return Download<std::uint8_t>(memory_.Rows(view().bytes(), kGuard), stream_) ==
           Bytes(kGuard, kPoison);
  }

 private:
  using Bytes = std::vector<std::uint8_t>;
  static constexpr std::int64_t kGuard = 4096;
  static constexpr std::uint8_t kPoison{0xA5};
  Stream& stream_;
  Arena arena_;
  TensorView memory_;
};

/// One rank's tensors of a step on its device: its data group's tokens.
class StepTensors {
 public:
  StepTensors(const Mesh& mesh, const ExchangeSizes& sizes, std::int64_t tokens, Stream& stream)
      : seat_(mesh.seat),
        top_k_(sizes.top_k),
        tokens_(tokens),
        stream_(stream),
        arena_(NewArenaFor(*mesh.node,
                           2 * ArenaBytes(tokens * kHidden * 4) +
                               2 * ArenaBytes(tokens * sizes.top_k * 4) + kAlignment,
                           stream)),
        x_(arena_.Take(DType::kF32, {tokens, kHidden})),
        ids_(arena_.Take(DType::kI32, {tokens, sizes.top_k})),
        weights_(arena_.Take(DType::kF32, {tokens, sizes.top_k})),
        out_(arena_.Take(DType::kF32, {tokens, kHidden})) {}

  void Bring(const StepInput& step) {
    const std::int64_t begin = FirstOf(step);
    Upload(x_, Part(step.x, begin, kHidden), stream_);
    Upload(ids_, Part(step.ids, begin, top_k_), stream_);
    Upload(weights_, Part(step.weights, begin, top_k_), stream_);
    Upload(out_, Floats(static_cast<std::size_t>(tokens_ * kHidden), -1.0f), stream_);
  }

  /// Runs the step, whose sizes the exchange has been told.
  void Exchange(const Mesh& mesh, const ExchangeSizes& sizes, ExpertExchange& exchange) {
    const ExpertBatch batch = exchange.Dispatch(x_, ids_, stream_);
    const Range experts = OwnedExperts(mesh.plan, sizes.experts, seat_.expert);
    const auto subtrees =
        MaximalSubtrees(OwnedChunks(seat_.expert_tensor, mesh.plan.expert_tensor));
    EXPECT_EQ(batch.offsets.size(0), experts.size() + 1);
    EXPECT_LE(batch.tokens.size(0), exchange.max_rows());
    EXPECT_EQ(batch.partials.shape(),
              (Shape{static_cast<std::int64_t>(subtrees.size()), batch.tokens.size(0), kHidden}));
    RunOnDevice(stream_, [=] {
      const std::int32_t* offsets = batch.offsets.data<std::int32_t>();
      ASSERT_EQ(offsets[0], 0);
      ASSERT_TRUE(std::is_sorted(offsets, offsets + batch.offsets.size(0)));
      ASSERT_EQ(batch.rows.data<std::int32_t>(), offsets + experts.size());
      ASSERT_LE(*batch.rows.data<std::int32_t>(), batch.tokens.size(0));
      ComputeExperts(batch, experts, subtrees);
    });
    exchange.Combine(out_, ids_, weights_, stream_);
  }

  void CheckOut(const StepInput& step, const Floats& expected) {
    const Floats out = Download<float>(out_, stream_);
    EXPECT_TRUE(tokens_ == 0 || std::memcmp(out.data(), expected.data() + FirstOf(step) * kHidden,
                                            out.size() * sizeof(float)) == 0);
  }

 private:
  std::int64_t FirstOf(const StepInput& step) const {
    return std::accumulate(step.tokens_of_group.begin(), step.tokens_of_group.begin() + seat_.data,
                           std::int64_t{0});
  }
  /// Rows [begin, begin + tokens_) of [all tokens, width].
  template <class T>
  std::vector<T> Part(const std::vector<T>& all, std::int64_t begin, std::int64_t width) const {
    return {all.begin() + begin * width, all.begin() + (begin + tokens_) * width};
  }

  Seat seat_;
  std::int64_t top_k_;
  std::int64_t tokens_;
  Stream& stream_;
  Arena arena_;
  TensorView x_;
  TensorView ids_;
  TensorView weights_;
  TensorView out_;
};

/// Token counts per data group: uneven, none at all, as many as fit.
std::vector<std::vector<std::int64_t>> StepsFor(int data) {
  const std::vector<std::int64_t> counts = {0, 1, 2, 7, kMaxTokens};
  std::vector<std::vector<std::int64_t>> steps;
  for (std::size_t first = 0; first < counts.size(); ++first) {
    std::vector<std::int64_t> step;
    for (std::size_t d = 0; d < static_cast<std::size_t>(data); ++d) {
      step.push_back(counts[(first + 2 * d) % counts.size()]);
    }
    steps.push_back(step);
  }
  if (data > 1) {
    steps.emplace_back(static_cast<std::size_t>(data), 0);
    steps.emplace_back(static_cast<std::size_t>(data), kMaxTokens);
  }
  return steps;
}

/// How a GPU exchange is to know its row counts: from the sizes where it can, or from the routing.
enum class Steps { kPadded, kExact };

void CheckPlan(RunDeviceWorld run_world, const ParallelPlan& plan, int experts, int top_k,
               Steps kind) {
  SCOPED_TRACE(testing::Message() << plan.ToString() << ", " << experts << " experts, top "
                                  << top_k);
  ExchangeSizes sizes{
      .hidden = kHidden, .experts = experts, .top_k = top_k, .max_tokens = kMaxTokens};
  if (kind == Steps::kExact) sizes.padded_bytes = 0;
  std::vector<StepInput> steps;
  std::vector<Floats> expected;
  for (const auto& tokens_of_group : StepsFor(plan.data)) {
    steps.push_back(MakeStep(tokens_of_group, experts, top_k, static_cast<unsigned>(steps.size())));
    expected.push_back(Expected(steps.back(), top_k));
  }
  run_world(plan.world(), [&](std::unique_ptr<Communicator> world, Stream& stream) {
    const Mesh mesh = MakeMesh(plan, std::move(world));
    ExchangeSizes of_rank = sizes;
    of_rank.device = stream.device();
    const GuardedMemory memory(ExpertExchangeBytes(plan, mesh.seat, of_rank), *mesh.node, stream);
    const auto exchange = MakeExpertExchange(mesh, of_rank, memory.view());
    EXPECT_EQ(exchange->max_rows(), MaxExpertRows(plan, mesh.seat, of_rank));
    for (std::size_t s = 0; s < steps.size(); ++s) {
      SCOPED_TRACE(testing::Message() << "step " << s << ", rank " << mesh.seat.world_rank);
      StepTensors tensors(mesh, of_rank,
                          steps[s].tokens_of_group[static_cast<std::size_t>(mesh.seat.data)],
                          stream);
      tensors.Bring(steps[s]);
      exchange->BeginStep(steps[s].tokens_of_group);
      tensors.Exchange(mesh, of_rank, *exchange);
      tensors.CheckOut(steps[s], expected[s]);
    }
    EXPECT_TRUE(memory.intact());
  });
}

/// Calls `check(plan, experts)` with the plans of a world.
template <class Check>
void ForPlans(int world, Exchange exchange, const Check& check) {
  for (const int data : {1, 2, 4}) {
    for (int expert = 1; expert <= world; ++expert) {
      if (world % data != 0 || world % expert != 0) continue;
      for (const int experts : {8, 5}) {
        if (expert <= experts) check(MakePlan(world, experts, exchange, expert, data), experts);
      }
    }
  }
}

using Case = std::tuple<RunDeviceWorld, int, Exchange>;

class ExpertExchangeTest : public testing::TestWithParam<Case> {};

TEST_P(ExpertExchangeTest, HasTheBitsOfTheDefinition) {
  const auto [run_world, world, exchange] = GetParam();
  ForPlans(world, exchange, [&, run = run_world](const ParallelPlan& plan, int experts) {
    for (const int top_k : {1, 2, 3}) CheckPlan(run, plan, experts, top_k, Steps::kPadded);
  });
}

std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  const auto [run_world, world, exchange] = info.param;
  return std::to_string(world) + (exchange == Exchange::kReplicated ? "Replicated" : "AllToAll");
}

INSTANTIATE_TEST_SUITE_P(Local, ExpertExchangeTest,
                         testing::Combine(testing::Values(RunLocalCpus), testing::Range(1, 9),
                                          testing::Values(Exchange::kReplicated,
                                                          Exchange::kAllToAll)),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(
    SharedMemory, ExpertExchangeTest,
    testing::Combine(testing::Values(RunSharedMemoryCpus), testing::Range(2, 6),
                     testing::Values(Exchange::kReplicated, Exchange::kAllToAll)),
    NameOfCase);

/// On GPUs: what waits for the host, and what does not.
class GpuExpertExchangeTest : public testing::TestWithParam<Case> {};

TEST_P(GpuExpertExchangeTest, HasTheBitsOfTheDefinition) {
  const auto [run_world, world, exchange] = GetParam();
  ForPlans(world, exchange, [&, run = run_world](const ParallelPlan& plan, int experts) {
    const int top_k = experts == 8 ? 3 : 1;
    CheckPlan(run, plan, experts, top_k, Steps::kPadded);
    if (plan.data < 4) CheckPlan(run, plan, experts, top_k, Steps::kExact);
  });
}

INSTANTIATE_TEST_SUITE_P(
    HostStaged, GpuExpertExchangeTest,
    testing::Combine(testing::Values(RunHostStagedGpus), testing::Values(1, 2, 3, 4, 6),
                     testing::Values(Exchange::kReplicated, Exchange::kAllToAll)),
    NameOfCase);

// Breaks: a decode step on GPUs runs a graph that takes rows where the recorded step had them.
TEST(ExpertExchangeGraphTest, ServesEveryRoutingOfItsSizes) {
  constexpr int kTopK = 2;
  for (const int world : {1, 3, 4}) {
    for (const Exchange form : {Exchange::kReplicated, Exchange::kAllToAll}) {
      ForPlans(world, form, [](const ParallelPlan& plan, int experts) {
        // A small step, all of which is everywhere, and one that is divided.
        const std::int64_t tokens = experts == 5 ? 3 : kMaxTokens;
        SCOPED_TRACE(testing::Message()
                     << plan.ToString() << ", " << experts << " experts, " << tokens << " tokens");
        std::vector<std::int64_t> tokens_of_group(static_cast<std::size_t>(plan.data), tokens);
        if (plan.data > 1) tokens_of_group.back() = 1;
        std::vector<StepInput> steps;
        std::vector<Floats> expected;
        for (const unsigned seed : {1U, 2U}) {
          steps.push_back(MakeStep(tokens_of_group, experts, kTopK, seed));
          expected.push_back(Expected(steps.back(), kTopK));
        }
        RunEnqueuedGpus(plan.world(), [&](std::unique_ptr<Communicator> ranks, Stream& stream) {
          const Mesh mesh = MakeMesh(plan, std::move(ranks));
          const ExchangeSizes sizes{.hidden = kHidden,
                                    .experts = experts,
                                    .top_k = kTopK,
                                    .max_tokens = kMaxTokens,
                                    .device = Device::kCuda};
          const GuardedMemory memory(ExpertExchangeBytes(plan, mesh.seat, sizes), *mesh.node,
                                     stream);
          const auto exchange = MakeExpertExchange(mesh, sizes, memory.view());
          StepTensors tensors(mesh, sizes,
                              tokens_of_group[static_cast<std::size_t>(mesh.seat.data)], stream);
          exchange->BeginStep(tokens_of_group);
          ASSERT_TRUE(exchange->capturable());
          stream.queue().BeginCapture();
          tensors.Exchange(mesh, sizes, *exchange);
          const auto graph = stream.queue().EndCapture();
          for (std::size_t s = 0; s < steps.size(); ++s) {
            tensors.Bring(steps[s]);
            stream.queue().Launch(*graph);
            tensors.CheckOut(steps[s], expected[s]);
          }
          EXPECT_TRUE(memory.intact());
        });
      });
    }
  }
}

// Breaks: the engine records a step that waits for the host, which fails on a GPU.
TEST(ExpertExchangeGraphTest, KnowsWhatCanBeRecorded) {
  const auto capturable = [](RunDeviceWorld run_world, const ParallelPlan& plan,
                             std::int64_t padded_bytes, std::int64_t tokens) {
    bool answer = false;
    run_world(plan.world(), [&](std::unique_ptr<Communicator> ranks, Stream& stream) {
      const Mesh mesh = MakeMesh(plan, std::move(ranks));
      const ExchangeSizes sizes{.hidden = kHidden,
                                .experts = 8,
                                .top_k = 2,
                                .max_tokens = kMaxTokens,
                                .device = Device::kCuda,
                                .padded_bytes = padded_bytes};
      Arena arena(stream.gpu(), ExpertExchangeBytes(plan, mesh.seat, sizes));
      const auto exchange =
          MakeExpertExchange(mesh, sizes, arena.Take(DType::kU8, {arena.bytes_left()}));
      exchange->BeginStep(std::vector<std::int64_t>(static_cast<std::size_t>(plan.data), tokens));
      if (mesh.leader()) answer = exchange->capturable();
    });
    return answer;
  };
  const ParallelPlan alone = MakePlan(1, 8, Exchange::kReplicated, 1, 1);
  const ParallelPlan cut = MakePlan(2, 8, Exchange::kReplicated, 1, 1);
  const ParallelPlan whole = MakePlan(2, 8, Exchange::kAllToAll, 2, 2);
  EXPECT_TRUE(capturable(RunHostStagedGpus, alone, 0, kMaxTokens));
  EXPECT_FALSE(capturable(RunHostStagedGpus, cut, 0, 1));
  EXPECT_TRUE(capturable(RunEnqueuedGpus, cut, 0, kMaxTokens));
  EXPECT_FALSE(capturable(RunEnqueuedGpus, whole, 0, 1));
  // Two groups of experts, each of which brings two rows for each home token.
  constexpr std::int64_t kTokenBytes = 2 * 2 * kHidden * 4;
  EXPECT_TRUE(capturable(RunEnqueuedGpus, whole, 5 * kTokenBytes, 5));
  EXPECT_FALSE(capturable(RunEnqueuedGpus, whole, 5 * kTokenBytes, 6));
}

}  // namespace
}  // namespace jubal

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
#include "tests/parallel/local_world.h"

namespace jubal {
namespace {

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

constexpr std::int64_t kHidden = 256;  // 33 tokens are then beyond the form for small batches
constexpr std::int64_t kMaxTokens = 33;

template <class T>
TensorView ViewOf(std::vector<T>& elements, Shape shape) {
  return TensorView(reinterpret_cast<std::byte*>(elements.data()), DTypeOf<T>(), shape);
}

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
  GuardedMemory(std::int64_t bytes, Communicator& node)
      : arena_(node.NewArena(bytes + kGuard)), memory_(arena_.Take(DType::kU8, {bytes + kGuard})) {
    std::fill_n(memory_.raw(), memory_.bytes(), kPoison);
  }

  TensorView view() const { return memory_.Rows(0, memory_.bytes() - kGuard); }
  bool intact() const {
    return std::all_of(view().raw() + view().bytes(), memory_.raw() + memory_.bytes(),
                       [](std::byte byte) { return byte == kPoison; });
  }

 private:
  static constexpr std::int64_t kGuard = 4096;
  static constexpr std::byte kPoison{0xA5};
  Arena arena_;
  TensorView memory_;
};

/// One rank's part of one step; its data group's tokens must come out as expected.
void CheckStep(const Mesh& mesh, const ExchangeSizes& sizes, const StepInput& step,
               const Floats& expected, ExpertExchange& exchange) {
  Stream stream;
  std::int64_t begin = 0;
  for (int d = 0; d < mesh.seat.data; ++d) {
    begin += step.tokens_of_group[static_cast<std::size_t>(d)];
  }
  const std::int64_t tokens = step.tokens_of_group[static_cast<std::size_t>(mesh.seat.data)];
  StepInput all = step;
  // No rows, but an address.
  all.x.push_back(0);
  all.ids.push_back(0);
  all.weights.push_back(0);
  const auto total = static_cast<std::int64_t>(step.x.size()) / kHidden;
  const ConstTensorView x = ViewOf(all.x, {total, kHidden}).Rows(begin, tokens);
  const ConstTensorView ids = ViewOf(all.ids, {total, sizes.top_k}).Rows(begin, tokens);
  const ConstTensorView weights = ViewOf(all.weights, {total, sizes.top_k}).Rows(begin, tokens);

  exchange.BeginStep(step.tokens_of_group);
  const ExpertBatch batch = exchange.Dispatch(x, ids, stream);
  const Range experts = OwnedExperts(mesh.plan, sizes.experts, mesh.seat.expert);
  const std::int32_t* offsets = batch.offsets.data<std::int32_t>();
  ASSERT_EQ(batch.offsets.size(0), experts.size() + 1);
  ASSERT_EQ(offsets[0], 0);
  ASSERT_TRUE(std::is_sorted(offsets, offsets + batch.offsets.size(0)));
  ASSERT_EQ(batch.rows.data<std::int32_t>(), offsets + experts.size());
  ASSERT_LE(*batch.rows.data<std::int32_t>(), exchange.max_rows());
  ASSERT_EQ(batch.tokens.size(0), exchange.max_rows());

  const auto subtrees =
      MaximalSubtrees(OwnedChunks(mesh.seat.expert_tensor, mesh.plan.expert_tensor));
  ASSERT_EQ(batch.partials.size(0), static_cast<std::int64_t>(subtrees.size()));
  ComputeExperts(batch, experts, subtrees);

  Floats out(static_cast<std::size_t>(tokens * kHidden) + 1, -1.0f);
  exchange.Combine(ViewOf(out, {tokens, kHidden}), ids, weights, stream);
  EXPECT_TRUE(tokens == 0 ||
              std::memcmp(out.data(), expected.data() + begin * kHidden,
                          static_cast<std::size_t>(tokens * kHidden) * sizeof(float)) == 0);
}

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

void CheckPlan(RunWorld run_world, const ParallelPlan& plan, int experts, int top_k) {
  SCOPED_TRACE(testing::Message() << plan.ToString() << ", " << experts << " experts, top "
                                  << top_k);
  const ExchangeSizes sizes{
      .hidden = kHidden, .experts = experts, .top_k = top_k, .max_tokens = kMaxTokens};
  std::vector<StepInput> steps;
  std::vector<Floats> expected;
  for (const auto& tokens_of_group : StepsFor(plan.data)) {
    steps.push_back(MakeStep(tokens_of_group, experts, top_k, static_cast<unsigned>(steps.size())));
    expected.push_back(Expected(steps.back(), top_k));
  }
  run_world(plan.world(), [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh = MakeMesh(plan, std::move(world));
    const GuardedMemory memory(ExpertExchangeBytes(plan, mesh.seat, sizes), *mesh.node);
    const auto exchange = MakeExpertExchange(mesh, sizes, memory.view());
    EXPECT_EQ(exchange->max_rows(), MaxExpertRows(plan, mesh.seat, sizes));
    for (std::size_t s = 0; s < steps.size(); ++s) {
      SCOPED_TRACE(testing::Message() << "step " << s << ", rank " << mesh.seat.world_rank);
      CheckStep(mesh, sizes, steps[s], expected[s], *exchange);
    }
    EXPECT_TRUE(memory.intact());
  });
}

using Case = std::tuple<RunWorld, int, Exchange>;

class ExpertExchangeTest : public testing::TestWithParam<Case> {};

TEST_P(ExpertExchangeTest, HasTheBitsOfTheDefinition) {
  const auto [run_world, world, exchange] = GetParam();
  for (const int data : {1, 2, 4}) {
    for (int expert = 1; expert <= world; ++expert) {
      if (world % data != 0 || world % expert != 0) continue;
      for (const int experts : {8, 5}) {
        if (expert > experts) continue;
        for (const int top_k : {1, 2, 3}) {
          CheckPlan(run_world, MakePlan(world, experts, exchange, expert, data), experts, top_k);
        }
      }
    }
  }
}

std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  const auto [run_world, world, exchange] = info.param;
  return std::to_string(world) + (exchange == Exchange::kReplicated ? "Replicated" : "AllToAll");
}

INSTANTIATE_TEST_SUITE_P(Local, ExpertExchangeTest,
                         testing::Combine(testing::Values(RunLocalWorld), testing::Range(1, 9),
                                          testing::Values(Exchange::kReplicated,
                                                          Exchange::kAllToAll)),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(
    SharedMemory, ExpertExchangeTest,
    testing::Combine(testing::Values(RunSharedMemoryWorld), testing::Range(2, 6),
                     testing::Values(Exchange::kReplicated, Exchange::kAllToAll)),
    NameOfCase);

}  // namespace
}  // namespace jubal

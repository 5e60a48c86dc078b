#include "runtime/random_weights.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/memory_plan.h"

namespace jubal {
namespace {

constexpr SyntheticShape kOdd{.hidden = 72,
                              .heads = 6,
                              .kv_heads = 3,
                              .head_dim = 20,
                              .experts = 5,
                              .top_k = 2,
                              .expert_hidden = 200,
                              .layers = 2,
                              .vocabulary = 333};

/// The weights of one rank, without the others.
struct Share {
  Arena arena;
  Weights weights;
};

Share ShareOf(const ModelSource& source, const ParallelPlan& plan, int rank) {
  Mesh mesh;
  mesh.plan = plan;
  mesh.seat = SeatOf(plan, rank);
  Share share{.arena = Arena(PlanMemory(source, plan, mesh.seat, {}).weight_bytes), .weights = {}};
  Stream cpu;
  share.weights = RandomWeights(source, mesh, share.arena, cpu, {});
  return share;
}

/// The data of one 64-column block of one chunk; all numbers are global.
const std::byte* BlockOf(const PackedMatrix& matrix, std::int64_t expert, std::int64_t chunk,
                         std::int64_t block) {
  const MatrixLayout& layout = matrix.layout;
  std::int64_t offset = (expert - layout.experts.begin) * layout.ExpertBytes();
  for (std::int64_t c = layout.chunks.begin; c < chunk; ++c) {
    offset += layout.BlockBytes(c) * layout.blocks().size();
  }
  offset += (block - layout.blocks().begin) * layout.BlockBytes(chunk);
  return matrix.data + offset;
}

// Figures of different numbers of ranks could not be compared, if each measured a model of its own.
TEST(RandomWeightsTest, EveryPlanHasTheSameModel) {
  for (const WeightType type : {WeightType::kInt8, WeightType::kBf16, WeightType::kInt4}) {
    const ModelSource source = ModelSource::Synthetic(kOdd, type);
    Share whole = ShareOf(source, MakePlan(1, 5, Exchange::kReplicated, {}, 1), 0);
    for (const auto& [ranks, expert_parallel] : {std::pair{2, 1}, {3, 1}, {4, 2}, {5, 5}, {8, 1}}) {
      const ParallelPlan plan = MakePlan(ranks, 5, Exchange::kReplicated, expert_parallel, 1);
      for (int rank = 0; rank < ranks; ++rank) {
        Share share = ShareOf(source, plan, rank);
        for (const WeightSpec& spec : source.weights()) {
          if (spec.n == 0) continue;
          const PackedMatrix& matrix = MatrixOf(share.weights, spec);
          const PackedMatrix& model = MatrixOf(whole.weights, spec);
          const MatrixLayout& layout = matrix.layout;
          for (std::int64_t e = layout.experts.begin; e < layout.experts.end; ++e) {
            for (std::int64_t c = layout.chunks.begin; c < layout.chunks.end; ++c) {
              for (std::int64_t b = layout.blocks().begin; b < layout.blocks().end; ++b) {
                ASSERT_EQ(std::memcmp(BlockOf(matrix, e, c, b), BlockOf(model, e, c, b),
                                      static_cast<std::size_t>(layout.BlockBytes(c))),
                          0)
                    << spec.Name() << " on " << plan.ToString() << ", rank " << rank;
              }
            }
          }
        }
      }
    }
  }
}

// Parts that repeat would let a cache or a common exponent flatter the figures.
TEST(RandomWeightsTest, PartsDiffer) {
  const ModelSource source = ModelSource::Synthetic(kOdd, WeightType::kInt8);
  const Share share = ShareOf(source, MakePlan(1, 5, Exchange::kReplicated, {}, 1), 0);
  const PackedMatrix& gate = share.weights.layers[0].expert_gate;
  const PackedMatrix& down = share.weights.layers[0].expert_down;
  const auto differ = [](const std::byte* a, const std::byte* b) {
    return std::memcmp(a, b, 64) != 0;
  };
  EXPECT_TRUE(differ(BlockOf(gate, 0, 0, 0), BlockOf(gate, 1, 0, 0)));
  EXPECT_TRUE(differ(BlockOf(gate, 0, 0, 0), BlockOf(gate, 0, 0, 1)));
  EXPECT_TRUE(differ(BlockOf(down, 0, 0, 0), BlockOf(down, 0, 1, 0)));
  EXPECT_TRUE(differ(gate.data, share.weights.layers[0].expert_up.data));
  EXPECT_TRUE(differ(gate.data, share.weights.layers[1].expert_gate.data));
}

float WidenBf16(const std::byte* data) {
  std::uint16_t half = 0;
  std::memcpy(&half, data, sizeof half);
  const std::uint32_t word = std::uint32_t{half} << 16;
  float value = 0;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// Element number i in the order of memory, scaled.
float Element(const PackedMatrix& matrix, std::int64_t i) {
  switch (matrix.layout.type) {
    case WeightType::kInt8:
      return (static_cast<float>(matrix.data[i]) - 128.0f) * matrix.scales[0];
    case WeightType::kInt4: {
      const int both = std::to_integer<int>(matrix.data[i / 2]);
      return static_cast<float>((i % 2 == 0 ? both & 15 : both >> 4) - 8) * matrix.scales[0];
    }
    case WeightType::kBf16:
      return WidenBf16(matrix.data + i * 2);
    default:
      float value = 0;
      std::memcpy(&value, matrix.data + i * 4, sizeof value);
      return value;
  }
}

// Activations that grow or vanish from layer to layer end in infinities or zeros.
TEST(RandomWeightsTest, ProductsKeepTheVariance) {
  for (const WeightType type : {WeightType::kInt8, WeightType::kBf16, WeightType::kInt4}) {
    const ModelSource source = ModelSource::Synthetic(kOdd, type);
    const Share share = ShareOf(source, MakePlan(1, 5, Exchange::kReplicated, {}, 1), 0);
    const LayerWeights& layer = share.weights.layers[0];
    for (const PackedMatrix* matrix :
         {&layer.expert_gate, &layer.expert_down, &layer.query, &layer.router}) {
      constexpr std::int64_t kCount = 4000;
      double sum = 0;
      double squares = 0;
      for (std::int64_t i = 0; i < kCount; ++i) {
        const double value = Element(*matrix, i);
        sum += value;
        squares += value * value;
      }
      const auto k = static_cast<double>(matrix->layout.k);
      // Integers reach one step further down than up.
      EXPECT_NEAR(sum / kCount * std::sqrt(k), 0, 0.2);
      EXPECT_NEAR(squares / kCount * k, 1, 0.1);
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/padded_pairs.h"

#include <numeric>

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class PaddedPairsGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(PaddedPairsGpuTest);

/// Each token's choices: different experts, none of them always first.
Ints RandomIds(std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
  std::mt19937 random(static_cast<unsigned>(tokens * 64 + top_k));
  std::vector<std::int32_t> all(static_cast<std::size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  Ints ids({tokens, top_k});
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    std::copy_n(all.begin(), top_k, ids.values().begin() + t * top_k);
  }
  return ids;
}

// Breaks: a padded step on GPUs computes with other tokens' rows, or writes where none belong.
TEST_P(PaddedPairsGpuTest, PacksAsTheSpecification) {
  for (const std::int64_t n : {1, 33, 1024, 2500}) {
    for (const std::int64_t tokens : {0, 1, 7}) {
      const Ints ids = RandomIds(tokens, 3, 8);
      // The rows of the last two experts, in the order in which they are met.
      Ints row_of(ids.view().shape(), -1);
      std::int32_t rows = 0;
      for (std::int64_t i = 0; i < tokens * 3; ++i) {
        if (ids[i] >= 6) row_of[i] = rows++;
      }
      const Floats x = RandomFloats({rows, n}, 1);
      Floats expected({tokens * 2, n}, -5.0f);
      RunSpecification(
          PackPairs{.out = expected.view(), .x = x.view(), .row_of = row_of.view(), .slots = 2});
      const TensorView out = OnGpu(Floats({tokens * 2, n}, -5.0f));
      Launch(PackPairs{.out = out, .x = OnGpu(x), .row_of = OnGpu(row_of), .slots = 2});
      EXPECT_EQ(ReadBack<float>(out), expected.values()) << n << ", " << tokens << " tokens";
    }
  }
}

TEST_P(PaddedPairsGpuTest, PlacesAsTheSpecification) {
  for (const std::int64_t groups : {1, 2, 3, 7, 64}) {
    for (const std::int64_t tokens : {0, 1, 50}) {
      const Ints wide = RandomIds(tokens, 9, 100);
      const Shape shape{tokens, 6};
      Ints expected(shape);
      const PlacePairs op{.row_of = expected.view(),
                          .topk_ids = wide.view().Columns(2, 6),
                          .experts = 100,
                          .groups = groups,
                          .slots = 6};
      RunSpecification(op);
      PlacePairs on_gpu = op;
      on_gpu.row_of = Allocate(DType::kI32, shape);
      on_gpu.topk_ids = OnGpu(wide).Columns(2, 6);
      Launch(on_gpu);
      EXPECT_EQ(ReadBack<std::int32_t>(on_gpu.row_of), expected.values()) << groups << " groups";
    }
  }
}

}  // namespace
}  // namespace jubal

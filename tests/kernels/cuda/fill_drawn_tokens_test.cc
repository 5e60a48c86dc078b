#include "kernels/fill_drawn_tokens.h"

#include "tests/kernels/cuda/gpu_test.h"

namespace jubal {
namespace {

class FillDrawnTokensGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(FillDrawnTokensGpuTest);

// Breaks: a sequence goes on with another sequence's token.
TEST_P(FillDrawnTokensGpuTest, AgreesWithTheSpecification) {
  for (const std::int64_t tokens : {0, 1, 128, 129, 300}) {
    Ints ids({tokens});
    for (std::int64_t t = 0; t < tokens; ++t) {
      ids[t] = static_cast<std::int32_t>(t % 3 == 0 ? t : -1 - t * 7 % 40);
    }
    Ints drawn({40});
    for (std::int64_t i = 0; i < 40; ++i) drawn[i] = static_cast<std::int32_t>(1000 + i);
    Ints expected = ids;
    RunSpecification(FillDrawnTokens{expected.view(), drawn.view()});
    const TensorView out = OnGpu(ids);
    Launch(FillDrawnTokens{.token_ids = out, .drawn = OnGpu(drawn)});
    EXPECT_EQ(ReadBack<std::int32_t>(out), expected.values()) << tokens;
  }
}

}  // namespace
}  // namespace jubal

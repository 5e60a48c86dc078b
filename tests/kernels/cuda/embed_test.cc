#include "kernels/embed.h"

#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

class EmbedGpuTest : public GpuTest {
 protected:
  PackedMatrix OnTheGpu(PackedMatrix matrix, const MatrixLayout& whole) {
    matrix.data = Bytes(matrix.data, whole.WeightBytes());
    if (whole.ScaleBytes() > 0) {
      matrix.scales = reinterpret_cast<const float*>(
          Bytes(reinterpret_cast<const std::byte*>(matrix.scales), whole.ScaleBytes()));
    }
    matrix.device = Device::kCuda;
    return matrix;
  }

 private:
  const std::byte* Bytes(const std::byte* host, std::int64_t size) {
    const TensorView there = Allocate(DType::kU8, {size});
    Launch(Copy{.out = there, .x = ConstTensorView(host, DType::kU8, {size})});
    return there.raw();
  }
};
INSTANTIATE_GPU_TEST(EmbedGpuTest);

// Breaks: tokens get other tokens' embeddings, or rows that a rank does not hold are not zero.
TEST_P(EmbedGpuTest, HasTheBitsOfTheSpecification) {
  constexpr std::int64_t kVocabulary = 300;
  for (const WeightType type : {WeightType::kF32, WeightType::kBf16, WeightType::kInt8}) {
    for (const std::int64_t hidden : {37, 1030}) {
      const RandomMatrix table(type, hidden, kVocabulary, 3);
      const PackedShare all(table, table.LayoutByOutput({0, kVocabulary}));
      const PackedMatrix all_there = OnTheGpu(all.matrix(), all.matrix().layout);
      for (const Range owned : {Range{0, kVocabulary}, Range{65, 130}, Range{7, 7}}) {
        const MatrixLayout part = table.LayoutByOutput(owned);
        for (const std::int64_t tokens : {0, 1, 12}) {
          const Ints twelve({12}, {0, 1, 63, 64, 65, 129, 130, 255, 256, 299, 65, 17});
          const Ints ids({tokens}, {twelve.values().begin(), twelve.values().begin() + tokens});
          Floats expected({tokens, hidden});
          RunSpecification(Embed{expected.view(), ids.view(), PartOf(all.matrix(), part), 78.25f});
          const TensorView out = Allocate(DType::kF32, {tokens, hidden});
          Launch(Embed{out, OnGpu(ids), PartOf(all_there, part), 78.25f});
          EXPECT_EQ(ReadBack<float>(out), expected.values())
              << NameOf(type) << " " << hidden << " columns from " << owned.begin;
        }
      }
    }
  }
}

}  // namespace
}  // namespace jubal

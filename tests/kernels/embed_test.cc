#include "kernels/embed.h"

#include <gtest/gtest.h>

#include "kernels/run.h"
#include "tests/kernels/host_tensor.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

constexpr std::int64_t kHidden = 37;
constexpr std::int64_t kVocabulary = 300;

// Breaks: tokens get other tokens' embeddings, on some rank count or table type, or rows that a
// rank does not hold are not zero, so that the sum over ranks is wrong.
TEST(EmbedTest, GivesOwnedRowsAndZeros) {
  for (const WeightType type : {WeightType::kF32, WeightType::kBf16, WeightType::kInt8}) {
    const RandomMatrix table(type, kHidden, kVocabulary, 3);
    for (const Range owned :
         {Range{0, kVocabulary}, Range{0, 65}, Range{65, 130}, Range{130, 300}}) {
      const PackedShare share(table, table.LayoutByOutput(owned));
      const Ints ids({12}, {0, 1, 63, 64, 65, 129, 130, 255, 256, 299, 65, 17});
      Floats out({12, kHidden}, 99.0f);
      RunSpecification(Embed{out.view(), ids.view(), share.matrix(), 78.25f});
      for (std::int64_t t = 0; t < 12; ++t) {
        const bool has = ids[t] >= owned.begin && ids[t] < owned.end;
        for (std::int64_t k = 0; k < kHidden; ++k) {
          const auto weight = static_cast<float>(table.Weight(0, k, ids[t]));
          const float expected = has ? 78.25f * weight : 0.0f;
          ASSERT_EQ(out[t * kHidden + k], expected) << "token " << ids[t] << " element " << k;
        }
      }
    }
  }
}

// Breaks: an idle step crashes.
TEST(EmbedTest, TakesNoTokens) {
  const RandomMatrix table(WeightType::kF32, kHidden, kVocabulary, 1);
  const PackedShare share(table, table.LayoutByOutput({0, kVocabulary}));
  const Ints ids({0});
  Floats out({0, kHidden});
  RunSpecification(Embed{out.view(), ids.view(), share.matrix()});
}

}  // namespace
}  // namespace jubal

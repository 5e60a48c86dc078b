#include "kernels/cpu_isa.h"

#include <gtest/gtest.h>

namespace jubal {
namespace {

// If this fails, a machine runs slower code than it could, or ranks that agreed on a lower tier
// for equal bits do not use it.
TEST(CpuIsa, StartsAtTheBestTierAndObeysForce) {
  EXPECT_EQ(ActiveCpuIsa(), BestCpuIsa());
  ForceCpuIsa(CpuIsa::kPortable);
  EXPECT_EQ(ActiveCpuIsa(), CpuIsa::kPortable);
  ForceCpuIsa(BestCpuIsa());
  EXPECT_EQ(ActiveCpuIsa(), BestCpuIsa());
}

// If this fails, a forced tier can end in an illegal instruction.
TEST(CpuIsaDeathTest, RefusesATierAboveTheBest) {
  const auto above = static_cast<CpuIsa>(static_cast<int>(BestCpuIsa()) + 1);
  EXPECT_DEATH(ForceCpuIsa(above), "check failed");
}

// If this fails, logs and the flag that forces a tier name it differently.
TEST(CpuIsa, TiersHaveNames) {
  EXPECT_EQ(NameOf(CpuIsa::kPortable), "portable");
  EXPECT_EQ(NameOf(CpuIsa::kAvx2), "avx2");
  EXPECT_EQ(NameOf(CpuIsa::kAvx512), "avx512");
}

}  // namespace
}  // namespace jubal

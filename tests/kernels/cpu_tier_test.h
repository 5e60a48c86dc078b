#ifndef JUBAL_TESTS_KERNELS_CPU_TIER_TEST_H_
#define JUBAL_TESTS_KERNELS_CPU_TIER_TEST_H_

#include <gtest/gtest.h>

#include <string>

#include "kernels/cpu_isa.h"

namespace jubal {

/// Runs once per instruction-set tier, and skips those that this CPU lacks.
class CpuTierTest : public testing::TestWithParam<CpuIsa> {
 public:
  static std::string Name(const testing::TestParamInfo<CpuIsa>& info) {
    return std::string(NameOf(info.param));
  }

 protected:
  void SetUp() override {
    if (GetParam() > BestCpuIsa()) GTEST_SKIP() << "this CPU has no " << NameOf(GetParam());
    ForceCpuIsa(GetParam());
  }
  void TearDown() override { ForceCpuIsa(BestCpuIsa()); }
};

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_CPU_TIER_TEST_H_

// The real NCCL has what we call: a missing one would be found when the first rank starts. Needs no
// GPU.

#include <gtest/gtest.h>

#include <cstdio>

#include "parallel/nccl_communicator.h"

namespace jubal {
namespace {

TEST(NcclLibraryTest, IsNewEnough) {
  int major = 0;
  int minor = 0;
  int patch = 0;
  ASSERT_EQ(std::sscanf(NcclVersion().c_str(), "%d.%d.%d", &major, &minor, &patch), 3);
  EXPECT_TRUE(major > 2 || (major == 2 && minor >= 28)) << NcclVersion();
}

}  // namespace
}  // namespace jubal

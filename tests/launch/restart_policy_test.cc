#include "launch/restart_policy.h"

#include <gtest/gtest.h>

namespace jubal {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

TEST(RestartPolicyTest, WaitsLongerEachTimeAndGivesUpAtTheFifth) {
  RestartPolicy policy;
  const RestartPolicy::Clock::time_point now{};
  for (const int wait : {0, 1, 2, 4}) EXPECT_EQ(policy.AfterFailure(now), seconds(wait));
  EXPECT_EQ(policy.AfterFailure(now), std::nullopt);
}

TEST(RestartPolicyTest, ForgetsWhatIsLongAgo) {
  RestartPolicy policy;
  RestartPolicy::Clock::time_point now{};
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(policy.AfterFailure(now), seconds(0));
    now += minutes(6);
  }
}

}  // namespace
}  // namespace jubal

#include "launch/supervisor.h"

#include <gtest/gtest.h>

namespace jubal {
namespace {

TEST(CoordinatorLineTest, ReadsEachKind) {
  EXPECT_EQ(std::get<ControlAt>(*ParseCoordinatorLine("control /run/x y/control")).address,
            "/run/x y/control");
  EXPECT_EQ(std::get<ListeningAt>(*ParseCoordinatorLine("listening [::1]:4711")).address,
            "[::1]:4711");
  EXPECT_EQ(std::get<Serving>(*ParseCoordinatorLine("serving 4294967295")).epoch, 4294967295u);
  const auto failed = std::get<EpochFailed>(*ParseCoordinatorLine("epoch-failed 3 rank 2 ended"));
  EXPECT_EQ(failed.epoch, 3u);
  EXPECT_EQ(failed.reason, "rank 2 ended");
}

TEST(CoordinatorLineTest, RefusesTheRest) {
  for (const char* line : {"", "serving", "serving ", "serving x", "serving 1 2", "serving -1",
                           "serving 4294967296", "epoch-failed x y", "hello 1", "control "}) {
    EXPECT_FALSE(ParseCoordinatorLine(line)) << line;
  }
}

}  // namespace
}  // namespace jubal

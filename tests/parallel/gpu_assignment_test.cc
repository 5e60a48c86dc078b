// Two ranks on one card make NCCL refuse to start; a rank that wrongly says so makes all of them
// slow.

#include "parallel/gpu_assignment.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/parallel/local_world.h"
#include "tests/parallel/on_two_hosts.h"

namespace jubal {
namespace {

TEST(GpuAssignmentTest, RanksOfAHostTakeTurns) {
  EXPECT_EQ(GpuOfRank(0, 8), 0);
  EXPECT_EQ(GpuOfRank(7, 8), 7);
  EXPECT_EQ(GpuOfRank(8, 8), 0);
  EXPECT_EQ(GpuOfRank(3, 1), 0);  // a launcher that shows each rank its own
  EXPECT_EQ(GpuOfRank(3, 0), -1);
}

TEST(GpuAssignmentTest, CardsAreToldApartByTheirUuid) {
  EXPECT_FALSE(GpusAreShared(std::vector<RankGpu>{{"a", 0, "GPU-1"}, {"a", 0, "GPU-2"}}));
  EXPECT_TRUE(GpusAreShared(std::vector<RankGpu>{{"a", 0, "GPU-1"}, {"a", 1, "GPU-1"}}));
  EXPECT_TRUE(GpusAreShared(
      std::vector<RankGpu>{{"a", 0, "1"}, {"a", 1, "2"}, {"b", 0, "3"}, {"b", 1, "2"}}));
  EXPECT_FALSE(GpusAreShared(std::vector<RankGpu>{{"a", -1, ""}, {"b", -1, ""}}));
}

TEST(GpuAssignmentTest, ARankWithoutAGpuAmongOthersIsNamed) {
  const std::vector<RankGpu> ranks{{"left", 0, "GPU-1"}, {"right-one", -1, ""}};
  try {
    GpusAreShared(ranks);
    FAIL() << "accepted";
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    EXPECT_STREQ(error.what(),
                 "rank 1 sees no GPU, but others do: show it one, or use --device cpu\n"
                 "  rank 0    left       GPU 0  GPU-1\n"
                 "  rank 1    right-one  no GPU\n");
  }
}

/// Every rank of three, on one host or two, sees the cards that `uuids` gives it.
void OnThreeRanks(int hosts,
                  const std::function<void(Communicator& world, const std::string& host)>& body) {
  RunLocalWorld(3, [&](std::unique_ptr<Communicator> local) {
    const int host = local->rank() % hosts;
    OnTwoHosts world(std::move(local), host);
    body(world, std::to_string(host));
  });
}

TEST(GpuAssignmentTest, AllRanksComeToTheSameDecision) {
  OnThreeRanks(1, [](Communicator& world, const std::string&) {
    const std::vector<std::string> two{"GPU-a", "GPU-b"};
    const GpuAssignment few = AssignGpus(world, two);
    EXPECT_EQ(few.gpu, world.rank() % 2);
    EXPECT_TRUE(few.shared);

    const std::vector<std::string> own{"GPU-" + std::to_string(world.rank())};
    const GpuAssignment each = AssignGpus(world, own);
    EXPECT_EQ(each.gpu, 0);
    EXPECT_FALSE(each.shared);
    EXPECT_NE(each.table.find("GPU-2"), std::string::npos);

    const GpuAssignment none = AssignGpus(world, {});
    EXPECT_EQ(none.gpu, -1);
    EXPECT_FALSE(none.shared);

    EXPECT_THROW(AssignGpus(world, world.rank() == 1 ? std::vector<std::string>() : two),
                 UserError);
  });
}

TEST(GpuAssignmentTest, RanksAreCountedOnTheirHost) {
  OnThreeRanks(2, [](Communicator& world, const std::string& host) {
    const std::vector<std::string> two{"GPU-a" + host, "GPU-b" + host};
    const GpuAssignment assignment = AssignGpus(world, two);
    EXPECT_EQ(assignment.gpu, world.rank() / 2);
    EXPECT_FALSE(assignment.shared);
  });
}

}  // namespace
}  // namespace jubal

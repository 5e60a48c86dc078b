// The ranks of a host exchange rows without a message: what orders their reads and writes are a few
// counters here. A missing one is a wrong byte now and then, or a server that stops.
//
// Ranks are threads of the test, so that the thread sanitizer sees both sides.

#include "parallel/shared_memory_communicator.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/shared_memory.h"
#include "tests/parallel/communicator_conformance.h"
#include "tests/parallel/local_world.h"
#include "tests/parallel/on_two_hosts.h"

namespace jubal {
namespace {

using Case = std::tuple<int, ConformanceCheck>;

class SharedMemoryCommunicatorTest : public testing::TestWithParam<Case> {};

TEST_P(SharedMemoryCommunicatorTest, Conforms) {
  const auto& [size, check] = GetParam();
  RunSharedMemoryWorld(size, [&, check = check.check](std::unique_ptr<Communicator> world) {
    Stream stream;
    check(*world, stream);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, SharedMemoryCommunicatorTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8),
                                          testing::ValuesIn(ConformanceChecks())),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) +
                                  std::get<1>(info.param).name;
                         });

// A group that took ranks of another host for neighbours would read memory that is not there.
TEST(SharedMemoryCommunicatorHostsTest, GroupsAcrossHostsConform) {
  for (const int size : {2, 3, 5}) {
    RunLocalWorld(size, [](std::unique_ptr<Communicator> local) {
      const int host = local->rank() % 2;
      const auto world = OverSharedMemory(std::make_unique<OnTwoHosts>(std::move(local), host), {});
      const auto node = world->SplitByNode();
      EXPECT_EQ(node->size(), (world->size() + 1 - host) / 2);
      EXPECT_EQ(node->rank(), world->rank() / 2);
      Stream stream;
      for (const ConformanceCheck& check : ConformanceChecks()) {
        if (std::string_view(check.name) == "SplitByNodeKeepsTheRanksOfOneHost") continue;
        check.check(*world, stream);
      }
    });
  }
}

// A wrong count that went unnoticed would be a wrong token.
TEST(SharedMemoryCommunicatorFailureTest, TellsWhenCountsDisagree) {
  RunSharedMemoryWorld(2, [](std::unique_ptr<Communicator> world) {
    Stream stream;
    std::vector<float> floats(8);
    const TensorView view(reinterpret_cast<std::byte*>(floats.data()), DType::kF32, {8, 1});
    for (const std::int64_t expected : {1, 5}) {  // less and more than come
      const std::vector<std::int64_t> send_rows{0, world->rank() == 0 ? 4 : 0};
      const std::vector<std::int64_t> recv_rows{world->rank() == 1 ? expected : 0,
                                                world->rank() == 0 ? 0 : send_rows[1]};
      const auto call = [&] {
        world->AllToAllRows(view.Rows(0, 8), recv_rows, view, send_rows, stream);
      };
      if (world->rank() == 0) {
        EXPECT_NO_THROW(call());
      } else {
        EXPECT_THROW(call(), CommunicationError);
      }
    }
  });
}

// If one rank went on without shared memory, the others would wait for it there.
TEST(ShareMemoryTest, FailsOnAllRanksAlike) {
  RunLocalWorld(3, [](std::unique_ptr<Communicator> world) {
    const bool greedy = world->rank() == 1;
    const SharedMemory none =
        ShareMemory(*world, greedy ? std::numeric_limits<std::int64_t>::max() : 4096);
    EXPECT_EQ(none.mine, nullptr);
    EXPECT_TRUE(none.of_rank.empty());
    EXPECT_TRUE(none.failure.starts_with("rank 1 of 3: mmap: ")) << none.failure;
    const SharedMemory some = ShareMemory(*world, 4096);
    EXPECT_EQ(some.failure, "");
    EXPECT_EQ(some.of_rank.size(), 3U);
  });
}

}  // namespace
}  // namespace jubal

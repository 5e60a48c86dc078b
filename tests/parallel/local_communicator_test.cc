// Tests of everything above this folder run on local worlds: a fault here hides theirs. A world
// that hangs when a rank dies hangs the test run, or a server that plays its ranks on threads.

#include "parallel/local_communicator.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/parallel/communicator_conformance.h"
#include "tests/parallel/local_world.h"

namespace jubal {
namespace {

using Case = std::tuple<int, ConformanceCheck>;

class LocalCommunicatorTest : public testing::TestWithParam<Case> {};

TEST_P(LocalCommunicatorTest, Conforms) {
  const auto& [size, check] = GetParam();
  RunLocalWorld(size, [&, check = check.check](std::unique_ptr<Communicator> world) {
    Stream stream;
    check(*world, stream);
  });
}

std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  const auto& [size, check] = info.param;
  return std::to_string(size) + check.name;
}

INSTANTIATE_TEST_SUITE_P(Sizes, LocalCommunicatorTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8),
                                          testing::ValuesIn(ConformanceChecks())),
                         NameOfCase);

/// Three ranks of four call `wait`; the fourth leaves. Each of the three must throw.
template <class Wait>
void ExpectWaitersThrow(Wait wait) {
  std::vector<int> thrown(3);
  RunLocalWorld(4, [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    if (rank == 3) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    EXPECT_THROW(wait(*world), CommunicationError);
    EXPECT_THROW(world->Barrier(), CommunicationError);  // and again
    thrown[static_cast<std::size_t>(rank)] = 1;
  });
  EXPECT_EQ(thrown, (std::vector<int>{1, 1, 1}));
}

TEST(LocalCommunicatorFailureTest, ARankThatLeavesWakesThoseWhoWait) {
  ExpectWaitersThrow([](Communicator& world) { world.Barrier(); });
  ExpectWaitersThrow([](Communicator& world) {
    std::vector<std::byte> message;
    world.Broadcast(message, 3);
  });
  ExpectWaitersThrow([](Communicator& world) { world.Split(0); });
  ExpectWaitersThrow([](Communicator& world) {
    Stream stream;
    std::vector<float> all(4);
    const float mine = 1;
    const std::vector<std::int64_t> rows(4, 1);
    world.AllGatherRows(
        TensorView(reinterpret_cast<std::byte*>(all.data()), DType::kF32, {4, 1}),
        ConstTensorView(reinterpret_cast<const std::byte*>(&mine), DType::kF32, {1, 1}), rows,
        stream);
  });
}

TEST(LocalCommunicatorFailureTest, AFinishedRankDoesNotDisturbTheLastCall) {
  for (int i = 0; i < 200; ++i) {
    RunLocalWorld(4, [](std::unique_ptr<Communicator> world) {
      EXPECT_NO_THROW(world->Barrier());
      world.reset();
    });
  }
}

}  // namespace
}  // namespace jubal

// Ranks with GPUs talk through this. What NCCL does not say, a rank would wait for without an end,
// in a call that nothing interrupts: the job would hang, and nobody knew where.
//
// NCCL is a fake one (fake_nccl.h), the GPUs are emulated, the ranks are real. Run by mpirun: every
// rank runs every test, in the same order.

#include "parallel/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/arena.h"
#include "kernels/copy.h"
#include "kernels/error.h"
#include "kernels/run.h"
#include "parallel/mpi_communicator.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"
#include "tests/parallel/communicator_conformance.h"
#include "tests/parallel/fake_nccl.h"
#include "tests/parallel/mpi_test_program.h"
#include "tests/parallel/on_two_hosts.h"

namespace jubal {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

MpiSession* session = nullptr;
int world_size = 0;

class NcclCommunicatorTest : public testing::Test {
 protected:
  NcclCommunicatorTest()
      : ranks_(session->World()), made_before_(fake_.made), aborted_before_(fake_.aborted) {}
  // Whatever a test has set.
  ~NcclCommunicatorTest() override {
    fake_.version = 22809;
    fake_.polls = 3;
    fake_.connects = true;
    fake_.calls_until_error = -1;
    fake_.refuses_calls = false;
    fake_.keeps_aborts = false;
    ranks_->Barrier();
  }

  // What goes well must not take that long on a busy machine; what fails takes all of it.
  static NcclOptions Impatient() {
    return {.start_limit = std::chrono::seconds(2), .wait_limit = std::chrono::seconds(2)};
  }
  std::unique_ptr<Communicator> NewWorld(const NcclOptions& options = {}) {
    return OverNccl(session->World(), *gpu_, options);
  }

  /// Each rank brings a row of two: its rank and `value`.
  void AllGather(Communicator& group, std::int32_t value) {
    const std::vector<std::int32_t> row{group.rank(), value};
    jubal::Run(Copy{.out = mine_,
                    .x = ConstTensorView(reinterpret_cast<const std::byte*>(row.data()),
                                         DType::kI32, {1, 2})},
               stream_);
    group.AllGatherRows(
        all_, mine_, std::vector<std::int64_t>(static_cast<std::size_t>(group.size()), 1), stream_);
  }
  /// Every rank sends every other one its row.
  void AllToAll(Communicator& group) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(group.size()), 0);
    const int next = (group.rank() + 1) % group.size();
    const int last = (group.rank() + group.size() - 1) % group.size();
    std::vector<std::int64_t> from = rows;
    rows[static_cast<std::size_t>(next)] = 1;
    from[static_cast<std::size_t>(last)] = 1;
    group.AllToAllRows(all_, from, mine_, rows, stream_);
  }
  /// What the ranks of the latest AllGather brought.
  std::vector<std::int32_t> Values(const Communicator& group) {
    std::vector<std::int32_t> all(2 * static_cast<std::size_t>(group.size()));
    jubal::Run(Copy{.out = TensorView(reinterpret_cast<std::byte*>(all.data()), DType::kI32,
                                      {group.size(), 2}),
                    .x = all_.Rows(0, group.size())},
               stream_);
    stream_.Synchronize();
    return all;
  }
  static std::vector<std::int32_t> Expected(int size, std::int32_t value) {
    std::vector<std::int32_t> expected;
    for (int r = 0; r < size; ++r) expected.insert(expected.end(), {r, value});
    return expected;
  }

  template <class Call>
  static std::string FailureOf(const Call& call) {
    try {
      call();
    } catch (const CommunicationError& error) {
      return error.what();
    }
    return "";
  }
  template <class Call>
  static std::string UserErrorOf(const Call& call) {
    try {
      call();
    } catch (const UserError& error) {
      EXPECT_EQ(error.status(), ExitStatus::kConfig);
      return error.what();
    }
    return "";
  }

  int rank() const { return ranks_->rank(); }
  int made() const { return fake_.made - made_before_; }
  int aborted() const { return fake_.aborted - aborted_before_; }
  FakeNccl& fake() { return fake_; }
  Communicator& ranks() { return *ranks_; }
  Stream& stream() { return stream_; }

 private:
  FakeNccl& fake_ = TheFakeNccl();
  std::unique_ptr<Communicator> ranks_;
  const int made_before_;
  const int aborted_before_;
  std::unique_ptr<Gpu> gpu_ = OpenEmulatedGpu();
  Arena arena_{*gpu_, 4096};
  TensorView mine_ = arena_.Take(DType::kI32, {1, 2});
  TensorView all_ = arena_.Take(DType::kI32, {world_size, 2});
  Stream stream_{*gpu_};
};

class NcclConformanceTest : public NcclCommunicatorTest,
                            public testing::WithParamInterface<ConformanceCheck> {};

TEST_P(NcclConformanceTest, Conforms) {
  const auto world = NewWorld();
  GetParam().check(*world, stream());
}

// What lies on the CPU does not become slower, or wrong, because there is a GPU.
TEST_P(NcclConformanceTest, ConformsOnTheCpu) {
  const auto world = NewWorld();
  Stream cpu;
  GetParam().check(*world, cpu);
}

INSTANTIATE_TEST_SUITE_P(Suite, NcclConformanceTest, testing::ValuesIn(ConformanceChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

// A decode step is a graph: what it gathers must be what is there when it runs.
TEST_F(NcclCommunicatorTest, CallsAreRecordedInAGraph) {
  const auto world = NewWorld();
  EXPECT_TRUE(world->capturable());
  Arena arena = world->NewArena(4096);
  const TensorView mine = arena.Take(DType::kI32, {1, 1});
  const TensorView all = arena.Take(DType::kI32, {world->size(), 1});
  stream().queue().BeginCapture();
  world->AllGatherRows(
      all, mine, std::vector<std::int64_t>(static_cast<std::size_t>(world_size), 1), stream());
  const std::unique_ptr<GpuGraph> graph = stream().queue().EndCapture();
  for (std::int32_t round = 0; round < 3; ++round) {
    const std::int32_t value = 10 * round + rank();
    jubal::Run(
        Copy{.out = mine,
             .x = ConstTensorView(reinterpret_cast<const std::byte*>(&value), DType::kI32, {1, 1})},
        stream());
    stream().queue().Launch(*graph);
    std::vector<std::int32_t> values(static_cast<std::size_t>(world_size));
    jubal::Run(Copy{.out = TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kI32,
                                      {world_size, 1}),
                    .x = all},
               stream());
    world->Wait(stream());
    for (int r = 0; r < world_size; ++r) {
      EXPECT_EQ(values[static_cast<std::size_t>(r)], 10 * round + r);
    }
  }
}

// Each communicator takes hundreds of megabytes of the GPU.
TEST_F(NcclCommunicatorTest, GroupsThatNeedNoCommunicatorOfTheirOwnHaveNone) {
  const auto world = NewWorld();
  const int first = world_size > 1 ? 1 : 0;
  EXPECT_EQ(made(), first);
  const auto alone = world->Split(world->rank());
  const auto all = world->Split(0);
  const auto node = world->SplitByNode();
  EXPECT_EQ(made(), first);
  for (Communicator* const group : {alone.get(), all.get(), node.get()}) {
    AllGather(*group, 5);
    EXPECT_EQ(Values(*group), Expected(group->size(), 5));
  }
  EXPECT_EQ(NcclMemory(*world).has_value(), world_size == 1);  // this NCCL does not tell
}

TEST_F(NcclCommunicatorTest, EveryCommunicatorEndsWithTheLastGroup) {
  {
    auto world = NewWorld();
    const auto half = world->Split(world->rank() % 2);
    AllGather(*half, 3);
    stream().Synchronize();
    ranks().Barrier();
    world = nullptr;
    EXPECT_EQ(aborted(), 0);
  }
  EXPECT_EQ(aborted(), made());
}

class NcclFailureTest : public NcclCommunicatorTest {
 protected:
  void SetUp() override {
    if (world_size == 1) GTEST_SKIP() << "a rank alone uses no NCCL";
  }
  std::string AllRanks() const { return "of ranks 0-" + std::to_string(world_size - 1); }
};

TEST_F(NcclFailureTest, APeerThatNeverComesIsWaitedForNoLongerThanAllowed) {
  const auto world = NewWorld(Impatient());
  AllToAll(*world);
  world->Wait(stream());
  if (rank() > 0) {
    AllGather(*world, 1);
    EXPECT_THAT(
        FailureOf([&] { world->Wait(stream()); }),
        AllOf(HasSubstr("rank " + std::to_string(rank()) + " of "),
              HasSubstr("the GPU's work has not ended in 2000 ms; latest calls: "
                        "AllGatherRows 2 " +
                        AllRanks() + " (" + std::to_string(8 * (world_size - 1)) + " bytes sent, " +
                        std::to_string(8 * (world_size - 1)) + " received), AllToAllRows 1 " +
                        AllRanks() + " (8 bytes sent, 8 received)")));
    EXPECT_EQ(aborted(), made());
    // The job is at its end: nothing may touch what is gone.
    EXPECT_THAT(FailureOf([&] { AllGather(*world, 2); }), HasSubstr("have been aborted"));
    EXPECT_THAT(FailureOf([&] { world->Wait(stream()); }), HasSubstr("have been aborted"));
  }
  ranks().Barrier();
}

TEST_F(NcclFailureTest, AnErrorThatNcclFindsLaterEndsAllGroups) {
  const auto world = NewWorld(Impatient());
  const auto half = world->Split(world->rank() % 2);
  EXPECT_EQ(made(), half->size() > 1 ? 2 : 1);
  if (rank() == 0) fake().calls_until_error = 0;
  AllGather(*world, 1);
  const std::string failure = FailureOf([&] { world->Wait(stream()); });
  if (rank() == 0) {
    EXPECT_THAT(failure, HasSubstr("work on the GPU " + AllRanks() +
                                   ": remote process exited or there was a network error (a peer "
                                   "hung up); latest calls: AllGatherRows "));
  } else {
    EXPECT_THAT(failure, HasSubstr("the GPU's work has not ended in 2000 ms"));
  }
  EXPECT_EQ(aborted(), made());
  ranks().Barrier();
}

TEST_F(NcclFailureTest, ACallThatNcclRefusesIsAnError) {
  for (const bool in_group : {false, true}) {
    const auto world = NewWorld(Impatient());
    fake().refuses_calls = true;
    EXPECT_THAT(FailureOf([&] { in_group ? AllToAll(*world) : AllGather(*world, 1); }),
                AllOf(HasSubstr(in_group ? "ncclGroupEnd" : "ncclAllGather"),
                      HasSubstr(AllRanks() + ": unhandled system error (no such device)")));
    fake().refuses_calls = false;
  }
  EXPECT_EQ(aborted(), made());
}

TEST_F(NcclFailureTest, ACallThatStaysInProgressIsAnError) {
  const auto world = NewWorld(Impatient());
  fake().polls = INT_MAX;
  EXPECT_THAT(FailureOf([&] { AllGather(*world, 1); }),
              HasSubstr("ncclAllGather " + AllRanks() + " has not ended in 2000 ms"));
  EXPECT_EQ(aborted(), made());
}

TEST_F(NcclFailureTest, ConnectingTakesNoLongerThanAllowed) {
  const auto world = NewWorld(Impatient());
  fake().connects = false;
  EXPECT_THAT(FailureOf([&] { NewWorld(Impatient()); }),
              HasSubstr("ncclCommInitRankConfig " + AllRanks() + " has not ended in 2000 ms"));
  EXPECT_EQ(aborted(), 1);
  ranks().Barrier();
  if (world_size > 2) {
    EXPECT_THAT(FailureOf([&] { world->Split(world->rank() % 2); }),
                HasSubstr("ncclCommSplit " + AllRanks() + " has not ended in 2000 ms"));
    EXPECT_EQ(aborted(), 2);
  }
}

// ncclCommAbort waits for graphs that hold calls, and these may live where the error is caught.
TEST_F(NcclFailureTest, AnAbortThatWaitsDoesNotKeepTheError) {
  const auto world = NewWorld(Impatient());
  fake().keeps_aborts = true;
  fake().refuses_calls = true;
  EXPECT_THAT(FailureOf([&] { AllGather(*world, 1); }), HasSubstr("no such device"));
  EXPECT_EQ(aborted(), 1);
}

TEST_F(NcclFailureTest, RanksWithTheWrongLibraryAreNamed) {
  const int last = world_size - 1;
  if (rank() == last) fake().version = 22703;
  EXPECT_EQ(UserErrorOf([&] { NewWorld(); }),
            "rank " + std::to_string(last) + " has NCCL 2.27.3; Jubal needs at least 2.28.0");
  if (rank() == last) fake().version = 23203;
  EXPECT_EQ(UserErrorOf([&] { NewWorld(); }),
            "rank 0 has NCCL 2.28.9, but rank " + std::to_string(last) + " has 2.32.3");
  EXPECT_EQ(made(), 0);
}

// Rows that a user wanted encrypted must not go out readable.
TEST_F(NcclFailureTest, AKeyIsRefusedByALibraryThatCannotEncrypt) {
  const NcclOptions options{.encryption_key = std::string(32, 'k')};
  const auto gpu = OpenEmulatedGpu();
  EXPECT_THAT(UserErrorOf([&] {
                OverNccl(std::make_unique<OnTwoHosts>(session->World(), rank() % 2), *gpu, options);
              }),
              AllOf(HasSubstr("JUBAL_NCCL_KEY is set, but NCCL 2.28.9 cannot encrypt"),
                    Not(HasSubstr("kkkk"))));
  EXPECT_EQ(made(), 0);
  AllGather(*NewWorld(options), 1);  // on one host there is nothing to encrypt
  stream().Synchronize();
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  jubal::MpiSession session;
  jubal::session = &session;
  const auto world = session.World();
  jubal::world_size = world->size();
  jubal::StartFakeNccl();
  return jubal::RunTestsOnEveryRank(*world);
}

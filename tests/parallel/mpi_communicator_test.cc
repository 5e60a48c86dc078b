// Ranks of a real job talk through this. A wrong byte is a wrong answer; a call that does not
// return stops the server; a wait that spins keeps the cores of an idle server busy.
//
// Run by mpirun: every rank runs every test, in the same order. All exit non-zero when any failed.

#include "parallel/mpi_communicator.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "parallel/host_staged_communicator.h"
#include "parallel/shared_memory_communicator.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"
#include "tests/parallel/communicator_conformance.h"
#include "tests/parallel/mpi_test_program.h"

namespace jubal {
namespace {

Communicator* world = nullptr;          // all messages through MPI
Communicator* shared_memory = nullptr;  // rows not
Communicator* host_staged = nullptr;    // a GPU's tensors, over shared_memory
Gpu* gpu = nullptr;

class MpiCommunicatorTest : public testing::TestWithParam<ConformanceCheck> {};

TEST_P(MpiCommunicatorTest, Conforms) {
  Stream stream;
  GetParam().check(*world, stream);
}
TEST_P(MpiCommunicatorTest, ConformsOverSharedMemory) {
  Stream stream;
  GetParam().check(*shared_memory, stream);
}
TEST_P(MpiCommunicatorTest, ConformsOverHostMemory) {
  Stream stream(*gpu);
  GetParam().check(*host_staged, stream);
}

INSTANTIATE_TEST_SUITE_P(Suite, MpiCommunicatorTest, testing::ValuesIn(ConformanceChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiSessionTest, KnowsThatALauncherStartedIt) { EXPECT_TRUE(MpiSession::Launched()); }

/// A large range of addresses on little memory: one file, mapped again and again, and a second one
/// for the last bytes. Writing anywhere but at the end leaves the end alone.
class LongMemory {
 public:
  static constexpr std::int64_t kWindow = std::int64_t{16} << 20;

  explicit LongMemory(std::int64_t windows) : windows_(windows) {
    base_ = Map(nullptr, kWindow * windows, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    std::FILE* body = std::tmpfile();
    std::FILE* end = std::tmpfile();
    for (std::FILE* file : {body, end}) EXPECT_EQ(ftruncate(fileno(file), kWindow), 0);
    for (std::int64_t i = 0; i < windows; ++i) {
      Map(base_ + i * kWindow, kWindow, MAP_SHARED | MAP_FIXED,
          fileno(i + 1 < windows ? body : end));
    }
    std::fclose(body);
    std::fclose(end);
  }
  ~LongMemory() { munmap(base_, static_cast<std::size_t>(kWindow * windows_)); }
  LongMemory(const LongMemory&) = delete;
  LongMemory& operator=(const LongMemory&) = delete;

  std::byte* data() const { return base_; }
  std::byte* end_window() const { return base_ + kWindow * (windows_ - 1); }

 private:
  static std::byte* Map(std::byte* place, std::int64_t bytes, int flags, int file) {
    void* const address =
        mmap(place, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, flags, file, 0);
    EXPECT_NE(address, MAP_FAILED);
    return static_cast<std::byte*>(address);
  }

  std::byte* base_ = nullptr;
  std::int64_t windows_;
};

TEST(MpiCommunicatorLongTest, CarriesMoreBytesThanAnIntCounts) {
  if (world->size() != 2) GTEST_SKIP() << "one pair shows it";
  constexpr std::int64_t kWindows = 136;  // 2.1 GiB
  constexpr std::int64_t kRowBytes = std::int64_t{24} << 10;
  const std::int64_t rows = LongMemory::kWindow * kWindows / kRowBytes;
  const LongMemory mine(kWindows);
  const LongMemory theirs(kWindows);
  const auto value = static_cast<std::byte>(1 + world->rank());
  const auto other = static_cast<std::byte>(2 - world->rank());
  std::fill_n(mine.end_window(), LongMemory::kWindow, value);

  Stream stream;
  std::vector<std::int64_t> counts(2);
  counts[static_cast<std::size_t>(1 - world->rank())] = rows;
  world->AllToAllRows(TensorView(theirs.data(), DType::kU8, {rows, kRowBytes}), counts,
                      TensorView(mine.data(), DType::kU8, {rows, kRowBytes}), counts, stream);
  EXPECT_TRUE(std::all_of(theirs.end_window(), theirs.data() + rows * kRowBytes,
                          [&](std::byte byte) { return byte == other; }));
  EXPECT_EQ(*theirs.data(), std::byte{0});
}

int RunOnEveryRank() {
  MpiSession session;
  const std::unique_ptr<Communicator> ranks = session.World();
  world = ranks.get();
  const auto over_shared_memory = [&session] {
    return OverSharedMemory(session.World(), {.while_waiting = MpiSession::Progress,
                                              .on_failure = [](const std::string& failure) {
                                                ADD_FAILURE() << failure;
                                              }});
  };
  const std::unique_ptr<Communicator> sharing = over_shared_memory();
  shared_memory = sharing.get();
  const std::unique_ptr<Gpu> emulated = OpenEmulatedGpu();
  gpu = emulated.get();
  const std::unique_ptr<Communicator> staged = OverHostMemory(over_shared_memory(), *gpu);
  host_staged = staged.get();
  return RunTestsOnEveryRank(*world);
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return jubal::RunOnEveryRank();
}

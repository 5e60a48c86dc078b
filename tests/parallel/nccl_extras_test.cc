// What only later versions of NCCL have. A key that is not used, or used by half of the ranks, is
// worse than none; and the plan of memory should count what NCCL takes.
//
// Run by mpirun with the fake NCCL and its extras: every rank runs every test, in the same order.

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "kernels/error.h"
#include "parallel/mpi_communicator.h"
#include "parallel/nccl_communicator.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"
#include "tests/parallel/fake_nccl.h"
#include "tests/parallel/mpi_test_program.h"
#include "tests/parallel/on_two_hosts.h"

namespace jubal {
namespace {

MpiSession* session = nullptr;

class NcclExtrasTest : public testing::Test {
 protected:
  NcclExtrasTest() { TheFakeNccl().key.clear(); }

  std::unique_ptr<Communicator> NewWorld(int host, const std::string& key) {
    return OverNccl(std::make_unique<OnTwoHosts>(session->World(), host), *gpu_,
                    {.encryption_key = key});
  }
  std::string UserErrorOf(const std::string& key) {
    try {
      NewWorld(rank() % 2, key);
    } catch (const UserError& error) {
      EXPECT_EQ(error.status(), ExitStatus::kConfig);
      return error.what();
    }
    return "";
  }
  static int rank() { return session->World()->rank(); }

  const std::string key_ = std::string(32, 'k');

 private:
  std::unique_ptr<Gpu> gpu_ = OpenEmulatedGpu();
};

TEST_F(NcclExtrasTest, TheKeyIsUsedBetweenHosts) {
  NewWorld(rank() % 2, key_);
  EXPECT_EQ(TheFakeNccl().key, key_);
}

TEST_F(NcclExtrasTest, TheKeyIsNotNeededOnOneHost) {
  NewWorld(0, key_);
  EXPECT_EQ(TheFakeNccl().key, "");
}

TEST_F(NcclExtrasTest, AKeyThatSomeRanksLackIsRefused) {
  EXPECT_EQ(UserErrorOf(rank() == 1 ? "" : key_),
            "JUBAL_NCCL_KEY is set for some ranks, but not for rank 1");
  EXPECT_EQ(TheFakeNccl().key, "");
}

TEST_F(NcclExtrasTest, AKeyThatIsTooShortIsRefused) {
  EXPECT_EQ(UserErrorOf("secret"), "JUBAL_NCCL_KEY has 6 bytes; NCCL wants at least 32");
  EXPECT_EQ(TheFakeNccl().key, "");
}

TEST_F(NcclExtrasTest, TheMemoryOfAllGroupsIsCounted) {
  const auto world = NewWorld(0, "");
  EXPECT_EQ(NcclMemory(*world), 1000);
  const auto pair = world->Split(world->rank() / 2);  // of three ranks
  EXPECT_EQ(NcclMemory(*pair), 1000 * (pair->size() == 2 ? 2 : 1));
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  jubal::MpiSession session;
  jubal::session = &session;
  const auto world = session.World();
  jubal::StartFakeNccl();
  return jubal::RunTestsOnEveryRank(*world);
}

#include "launch/mpirun.h"

#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace jubal {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Key;
using ::testing::Not;
using ::testing::Pair;

MpiJob Job() {
  MpiJob job;
  job.program = "/bin/jubal";
  job.ranks = 3;
  job.mpirun_arguments = {"--mca", "btl", "tcp,self"};
  job.rank_arguments = {"rank", "--model=m"};
  job.session_directory = "/run/session";
  job.shared_memory_directory = "/dev/shm/x";
  return job;
}

TEST(MpirunTest, OnThisHost) {
  const ChildCommand command = MpirunCommand(Job());
  EXPECT_THAT(command.arguments, ElementsAre("mpirun", "-n", "3", "--mca", "btl", "tcp,self",
                                             "/bin/jubal", "rank", "--model=m"));
  EXPECT_THAT(command.environment, Contains(Pair("OMPI_ALLOW_RUN_AS_ROOT", "1")));
  EXPECT_THAT(command.environment, Contains(Pair("OMPI_MCA_orte_tmpdir_base", "/run/session")));
  EXPECT_THAT(command.environment, Not(Contains(Key("JUBAL_CONTROL_TOKEN"))));
}

TEST(MpirunTest, AcrossHostsTheTokenTravelsInTheEnvironment) {
  MpiJob job = Job();
  job.hostfile = "hosts";
  job.token = "secret";
  const ChildCommand command = MpirunCommand(job);
  EXPECT_THAT(command.arguments, Contains("--hostfile"));
  EXPECT_THAT(command.arguments, Contains("JUBAL_CONTROL_TOKEN"));
  EXPECT_THAT(command.arguments, Not(Contains("secret")));
  EXPECT_THAT(command.environment, Contains(Pair("JUBAL_CONTROL_TOKEN", "secret")));
  // Directories of this host, and its choice of transports, are not for others.
  EXPECT_THAT(command.environment, Not(Contains(Key("OMPI_MCA_orte_tmpdir_base"))));
  EXPECT_THAT(command.environment, Not(Contains(Key("OMPI_MCA_btl"))));
}

TEST(MpirunTest, WithoutDirectoriesOpenMpiChooses) {
  MpiJob job = Job();
  job.session_directory.clear();
  const ChildCommand command = MpirunCommand(job);
  EXPECT_THAT(command.environment, Not(Contains(Key("OMPI_MCA_orte_tmpdir_base"))));
  EXPECT_THAT(command.environment, Not(Contains(Key("OMPI_MCA_btl_vader_backing_directory"))));
}

TEST(MpirunTest, TheUsersSettingsStay) {
  setenv("OMPI_MCA_btl", "tcp,self", 1);
  EXPECT_THAT(MpirunCommand(Job()).environment, Not(Contains(Key("OMPI_MCA_btl"))));
  unsetenv("OMPI_MCA_btl");
}

}  // namespace
}  // namespace jubal

#include "launch/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "launch/private_directory.h"

namespace jubal {
namespace {

std::string RunShell(const std::string& script, ChildCommand command = {}) {
  command.arguments = {"sh", "-c", script};
  int status = 0;
  waitpid(StartChild(command), &status, 0);
  return EndText(status);
}

TEST(ChildProcessTest, RunsInItsOwnGroupWithNothingToRead) {
  EXPECT_EQ(RunShell("exit 7"), "exit status 7");
  EXPECT_EQ(RunShell("kill -9 $$"), "signal 9 (Killed)");
  EXPECT_EQ(RunShell("test $(ps -o pgid= -p $$) -eq $$ || test $(cut -d' ' -f5 /proc/$$/stat) "
                     "-eq $$"),
            "exit status 0");
  EXPECT_EQ(RunShell("read x"), "exit status 1");
}

TEST(ChildProcessTest, BlocksNoSignal) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before);
  const std::string end = RunShell("kill -TERM $$");
  sigprocmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(end, "signal 15 (Terminated)");
}

TEST(ChildProcessTest, AddsToTheEnvironment) {
  ChildCommand command;
  command.environment["JUBAL_TEST"] = "a b";
  EXPECT_EQ(RunShell("test \"$JUBAL_TEST\" = 'a b' && test -n \"$PATH\"", command),
            "exit status 0");
}

TEST(ChildProcessTest, PrintsWhereItIsTold) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(pipe2(pipe.data(), O_CLOEXEC), 0);
  ChildCommand command;
  command.output_fd = pipe[1];
  EXPECT_EQ(RunShell("echo result; echo error >&2", command), "exit status 0");
  close(pipe[1]);
  std::array<char, 64> bytes{};
  const ssize_t size = read(pipe[0], bytes.data(), bytes.size());
  close(pipe[0]);
  EXPECT_EQ(std::string(bytes.data(), static_cast<std::size_t>(size)), "result\n");
}

TEST(ChildProcessTest, SaysWhenAProgramCannotBeRun) {
  ChildCommand command;
  command.arguments = {"/no/such/program"};
  try {
    StartChild(command);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUnavailable);
    EXPECT_STREQ(error.what(), "/no/such/program cannot be run: No such file or directory");
  }
}

TEST(ChildProcessTest, FindsDescendants) {
  ChildCommand command;
  command.arguments = {"sh", "-c", "sleep 60 & sleep 60"};
  const pid_t child = StartChild(command);
  std::vector<pid_t> found;
  for (int looks = 0; looks < 500 && found.size() < 3; ++looks) {
    found = Descendants();
    usleep(10'000);
  }
  EXPECT_EQ(found.size(), 3u);
  EXPECT_EQ(std::count(found.begin(), found.end(), child), 1);
  kill(-child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(PrivateDirectoryTest, IsPrivateAndGoesWithWhatItHolds) {
  std::filesystem::path path;
  {
    const PrivateDirectory directory(std::filesystem::temp_directory_path());
    path = directory.path();
    EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms::owner_all);
    std::filesystem::create_directories(path / "a" / "b");
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_THROW(PrivateDirectory("/no/such/parent"), UserError);
}

}  // namespace
}  // namespace jubal

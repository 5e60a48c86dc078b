#include "launch/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "kernels/error.h"

namespace jubal {
namespace {

[[noreturn]] void BecomeChild(const ChildCommand& command, pid_t parent, int failure_fd) {
  setpgid(0, 0);
  if (command.death_signal != 0) {
    prctl(PR_SET_PDEATHSIG, command.death_signal);
    if (getppid() != parent) _exit(EXIT_FAILURE);  // it died before
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
  dup2(command.output_fd >= 0 ? command.output_fd : STDERR_FILENO, STDOUT_FILENO);
  if (command.kept_fd >= 0) fcntl(command.kept_fd, F_SETFD, 0);
  for (const auto& [name, value] : command.environment) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> arguments;
  for (const std::string& argument : command.arguments) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  execvp(arguments.front(), arguments.data());
  const int error = errno;
  static_cast<void>(!write(failure_fd, &error, sizeof(error)));
  _exit(EXIT_FAILURE);
}

[[noreturn]] void CannotRun(const ChildCommand& command, int error) {
  throw UserError(
      ExitStatus::kUnavailable,
      fmt::format("{} cannot be run: {}", command.arguments.front(), std::strerror(error)));
}

/// The parent of a process, 0 if it is gone.
pid_t ParentOf(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text;
  std::getline(file, text);
  // The name in parentheses may hold anything; after it come the state and the parent.
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  return static_cast<pid_t>(std::strtol(text.c_str() + name_end + 4, nullptr, 10));
}

}  // namespace

pid_t StartChild(const ChildCommand& command) {
  std::array<int, 2> failure{};  // closed by exec, or tells why there was none
  if (pipe2(failure.data(), O_CLOEXEC) != 0) CannotRun(command, errno);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) BecomeChild(command, parent, failure[1]);
  int error = child < 0 ? errno : 0;
  close(failure[1]);
  if (child > 0 && read(failure[0], &error, sizeof(error)) > 0) waitpid(child, nullptr, 0);
  close(failure[0]);
  if (error != 0) CannotRun(command, error);
  return child;
}

std::vector<pid_t> Descendants() {
  std::map<pid_t, pid_t> parents;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const auto process =
        static_cast<pid_t>(std::strtol(entry.path().filename().c_str(), nullptr, 10));
    if (process > 0) parents.emplace(process, ParentOf(process));
  }
  std::vector<pid_t> found;
  for (const auto& [process, parent] : parents) {
    for (auto ancestor = parents.find(parent); ancestor != parents.end();
         ancestor = parents.find(ancestor->second)) {
      if (ancestor->first == getpid()) {
        found.push_back(process);
        break;
      }
    }
  }
  return found;
}

std::string EndText(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    return fmt::format("signal {} ({})", signal, strsignal(signal));
  }
  return fmt::format("exit status {}", WEXITSTATUS(wait_status));
}

}  // namespace jubal

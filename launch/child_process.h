#ifndef JUBAL_LAUNCH_CHILD_PROCESS_H_
#define JUBAL_LAUNCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace jubal {

struct ChildCommand {
  std::vector<std::string> arguments;              // the program first, found as a shell finds it
  std::map<std::string, std::string> environment;  // beside this process's own
  int death_signal = 0;                            // sent to the child when this process dies
  int kept_fd = -1;                                // open in the child; else only 0, 1 and 2 are
  int output_fd = -1;  // gets what the child prints on standard output, if not negative
};

/// Starts a child in a process group of its own, so that Ctrl-C does not reach it, with no signal
/// blocked, nothing to read on its standard input, and what it prints on standard error unless the
/// command says otherwise. Only for a process with one thread. Throws UserError(kUnavailable) if
/// the program cannot be run.
pid_t StartChild(const ChildCommand& command);

/// All processes that descend from this one.
std::vector<pid_t> Descendants();

/// Of a waitpid status, for people: "exit status 66", "signal 9 (Killed)".
std::string EndText(int wait_status);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_CHILD_PROCESS_H_

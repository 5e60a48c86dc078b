#ifndef JUBAL_LAUNCH_MPIRUN_H_
#define JUBAL_LAUNCH_MPIRUN_H_

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launch/child_process.h"

namespace jubal {

/// One MPI job of ranks of this program.
struct MpiJob {
  std::filesystem::path program;
  int ranks = 1;
  std::optional<std::string> hostfile;        // none: all ranks on this host
  std::vector<std::string> mpirun_arguments;  // the user's
  std::vector<std::string> rank_arguments;    // of the program, its command first
  std::optional<std::string> token;           // of the control connection, on TCP

  // For what Open MPI keeps in files; they must exist. Empty: where it likes. Only used without a
  // hostfile: other hosts have no such directories.
  std::filesystem::path session_directory;
  std::filesystem::path shared_memory_directory;
};

/// How to run the job under Open MPI's mpirun: as root, too, with more ranks than cores, and so
/// that a rank's death ends the others at once. Settings of Open MPI go through the environment:
/// there the user's own, and on the command line the user's arguments, come first.
ChildCommand MpirunCommand(const MpiJob& job);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_MPIRUN_H_

#include "launch/mpirun.h"

#include <signal.h>

#include <cstdlib>

#include <fmt/format.h>

#include "rpc/rank_link.h"

namespace jubal {

ChildCommand MpirunCommand(const MpiJob& job) {
  ChildCommand command;
  command.death_signal = SIGTERM;  // mpirun then ends the ranks
  command.environment = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}};
  const auto set = [&](const char* name, const std::string& value) {
    if (std::getenv(name) == nullptr) command.environment[name] = value;
  };
  set("OMPI_MCA_rmaps_base_oversubscribe", "1");
  set("OMPI_MCA_hwloc_base_binding_policy", "none");
  set("OMPI_MCA_odls_base_sigkill_timeout", "0");  // without it a rank's death takes a second
  if (!job.hostfile) {
    if (!job.session_directory.empty()) {
      set("OMPI_MCA_orte_tmpdir_base", job.session_directory.string());
      set("OMPI_MCA_btl_vader_backing_directory", job.shared_memory_directory.string());
    }
    // On one host there is no network to probe for.
    set("OMPI_MCA_pml", "ob1");
    set("OMPI_MCA_btl", "self,vader");
  }

  command.arguments = {"mpirun", "-n", fmt::format("{}", job.ranks)};
  if (job.hostfile)
    command.arguments.insert(command.arguments.end(), {"--hostfile", *job.hostfile});
  if (job.token) {
    command.environment[kControlTokenVariable] = *job.token;
    command.arguments.insert(command.arguments.end(), {"-x", kControlTokenVariable});
  }
  command.arguments.insert(command.arguments.end(), job.mpirun_arguments.begin(),
                           job.mpirun_arguments.end());
  command.arguments.push_back(job.program.string());
  command.arguments.insert(command.arguments.end(), job.rank_arguments.begin(),
                           job.rank_arguments.end());
  return command;
}

}  // namespace jubal

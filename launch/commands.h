#ifndef JUBAL_LAUNCH_COMMANDS_H_
#define JUBAL_LAUNCH_COMMANDS_H_

#include "launch/options.h"

namespace jubal {

// One function per command. Each returns the program's exit status and throws UserError for what
// the user can mend, unless it runs as one rank of many, which print their own errors (world.h).

int RunServe(const Options& options);
int RunRank(const Options& options);
int RunGenerate(const Options& options);
int RunScore(const Options& options);
int RunBench(const Options& options);
int RunChat(const Options& options);
int RunInspect(const Options& options);
int RunPlan(const Options& options);
int RunPack(const Options& options);
int RunCoordinatorProcess(const Options& options);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_COMMANDS_H_

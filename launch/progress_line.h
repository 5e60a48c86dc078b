#ifndef JUBAL_LAUNCH_PROGRESS_LINE_H_
#define JUBAL_LAUNCH_PROGRESS_LINE_H_

#include <string>

#include "runtime/step_benchmark.h"
#include "runtime/weight_loader.h"

namespace jubal {

/// Tells on standard error how far loading has come, at what rate and how long it still takes: on
/// a terminal a line that is rewritten in place, elsewhere a line every few seconds. On ranks other
/// than the leader it says nothing.
LoadProgress ProgressLine(bool leader);

/// The same for one test of a benchmark, on a terminal only: nothing else may run beside it. Takes
/// its line away in the end.
StepProgress TestProgressLine(const std::string& test);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_PROGRESS_LINE_H_

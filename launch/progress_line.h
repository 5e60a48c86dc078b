#ifndef JUBAL_LAUNCH_PROGRESS_LINE_H_
#define JUBAL_LAUNCH_PROGRESS_LINE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

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
/// The same for other work over bytes, such as "packing", "packed": bytes done, and in all.
std::function<void(std::int64_t, std::int64_t)> ProgressLine(std::string_view doing,
                                                             std::string_view done);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_PROGRESS_LINE_H_

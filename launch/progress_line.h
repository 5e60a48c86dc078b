#ifndef JUBAL_LAUNCH_PROGRESS_LINE_H_
#define JUBAL_LAUNCH_PROGRESS_LINE_H_

#include "runtime/weight_loader.h"

namespace jubal {

/// Tells on standard error how far loading has come, at what rate and how long it still takes: on
/// a terminal a line that is rewritten in place, elsewhere a line every few seconds. On ranks other
/// than the leader it says nothing.
LoadProgress ProgressLine(bool leader);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_PROGRESS_LINE_H_

#ifndef JUBAL_LAUNCH_BENCH_SCALING_H_
#define JUBAL_LAUNCH_BENCH_SCALING_H_

#include "launch/options.h"

namespace jubal {

/// Runs the benchmark once for each number of ranks in options.bench.scaling, each under an mpirun
/// of its own with the threads divided among the ranks, and prints one table with `speedup` (over
/// the first number of ranks) and `efficiency` (speedup over the growth of the ranks). Returns the
/// status of the first run that failed, or 0. Throws std::runtime_error when two runs of a test
/// drew different tokens. Only for a process with one thread, outside MPI.
int RunScaling(const Options& options);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_BENCH_SCALING_H_

#ifndef JUBAL_LAUNCH_CORES_H_
#define JUBAL_LAUNCH_CORES_H_

#include <array>

namespace jubal {

/// Hardware threads of a host, by the operating system's number; those from 4096 on are left out.
using CpuSet = std::array<unsigned long, 64>;

/// Lets this process run wherever its launcher may, and returns where that is. mpirun pins a rank
/// of a small job to one core unless told how to bind; what the user asked for is kept.
CpuSet TakeCores();

/// Cores with a hardware thread in `set`; at least 1.
int CountCores(const CpuSet& set);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_CORES_H_

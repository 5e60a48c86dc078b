#ifndef JUBAL_LAUNCH_CORES_H_
#define JUBAL_LAUNCH_CORES_H_

#include <array>
#include <cstdint>
#include <string>

namespace jubal {

/// Hardware threads of a host, by the operating system's number; those from 4096 on are left out.
using CpuSet = std::array<unsigned long, 64>;

/// Lets this process run wherever its launcher may, and returns where that is. mpirun pins a rank
/// of a small job to one core unless told how to bind; what the user asked for is kept.
CpuSet TakeCores();

/// Lets parallel loops use so many threads.
void UseThreads(int threads);

/// Cores with a hardware thread in `set`; at least 1.
int CountCores(const CpuSet& set);

/// What this host calls its processor: "AMD EPYC 7763 64-Core Processor".
std::string ProcessorName();

/// Bytes of the caches nearest to memory, all of this host's together; 0 if it does not tell.
std::int64_t LastLevelCacheBytes();

}  // namespace jubal

#endif  // JUBAL_LAUNCH_CORES_H_

#ifndef JUBAL_PARALLEL_GPU_ASSIGNMENT_H_
#define JUBAL_PARALLEL_GPU_ASSIGNMENT_H_

#include <span>
#include <string>

#include "parallel/communicator.h"

namespace jubal {

/// Which GPU a rank takes.
struct RankGpu {
  std::string host;
  int gpu = -1;      // its number among those that the rank sees; -1: it sees none
  std::string uuid;  // GpuInfo::uuid
};

/// Number local_rank mod `visible` of what a rank sees, where local_rank counts the ranks of its
/// host: right where all ranks see all GPUs, and where the launcher shows each rank its own. -1
/// when it sees none.
int GpuOfRank(int local_rank, int visible);

/// Whether two ranks take the same card. Throws UserError (kConfig) with a table of the ranks when
/// some have a GPU and others have none.
bool GpusAreShared(std::span<const RankGpu> ranks);

/// A line for each rank: "rank 3   node1   GPU 1   GPU-8f6e…".
std::string GpuTable(std::span<const RankGpu> ranks);

struct GpuAssignment {
  int gpu = -1;         // of this rank; -1: no rank has one
  bool shared = false;  // some card has several ranks, which NCCL refuses; on all ranks alike
  std::string table;    // GpuTable of the world
};

/// Gives each rank its GPU. `uuids` names those that this rank sees, in the order of their numbers.
/// Collective. Throws UserError on all ranks alike, as GpusAreShared does.
GpuAssignment AssignGpus(Communicator& world, std::span<const std::string> uuids);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_GPU_ASSIGNMENT_H_

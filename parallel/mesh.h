#ifndef JUBAL_PARALLEL_MESH_H_
#define JUBAL_PARALLEL_MESH_H_

#include <cstdint>
#include <memory>

#include "parallel/communicator.h"
#include "parallel/plan.h"

namespace jubal {

/// One rank's seat in a plan, with a communicator for each group it belongs to.
struct Mesh {
  ParallelPlan plan;
  Seat seat;
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> tensor;  // ranks sharing this rank's attention layer, by tensor
  std::unique_ptr<Communicator> data;    // ranks with this rank's tensor index, by data
  std::unique_ptr<Communicator> node;    // ranks on this host

  bool leader() const { return seat.world_rank == 0; }
};

/// Bytes of the segments that a rank brings to its groups if all ranks share one host's memory;
/// otherwise it is less.
std::int64_t SegmentBytesOf(const ParallelPlan& plan);

/// Seats every rank of `world`. Collective. Requires plan.world() == world->size().
Mesh MakeMesh(const ParallelPlan& plan, std::unique_ptr<Communicator> world);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_MESH_H_

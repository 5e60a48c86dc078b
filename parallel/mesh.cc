#include "parallel/mesh.h"

#include <utility>

#include "kernels/check.h"
#include "parallel/shared_memory_communicator.h"

namespace jubal {

std::int64_t SegmentBytesOf(const ParallelPlan& plan) {
  std::int64_t bytes = 0;
  for (const int size : {plan.world(), plan.tensor, plan.data, /*node*/ plan.world()}) {
    if (size > 1) bytes += SegmentBytes(size);
  }
  return bytes;
}

Mesh MakeMesh(const ParallelPlan& plan, std::unique_ptr<Communicator> world) {
  CHECK_EQ(plan.world(), world->size());
  CHECK_EQ(plan.world(), plan.expert * plan.expert_tensor);
  Mesh mesh;
  mesh.plan = plan;
  mesh.seat = SeatOf(plan, world->rank());
  mesh.tensor = world->Split(mesh.seat.data);
  mesh.data = world->Split(mesh.seat.tensor);
  mesh.node = world->SplitByNode();
  mesh.world = std::move(world);
  return mesh;
}

}  // namespace jubal

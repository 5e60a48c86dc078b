#include "parallel/mesh.h"

#include <utility>

#include "kernels/check.h"

namespace jubal {

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

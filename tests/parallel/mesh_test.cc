// A communicator over the wrong ranks adds up parts of different things, or waits for ranks that
// never come: the server answers nonsense or hangs.

#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "tests/parallel/local_world.h"

namespace jubal {
namespace {

/// The world ranks of a group's members, in the group's order.
std::vector<std::int32_t> WorldRanksOf(Communicator& group, int world_rank) {
  Stream stream;
  const auto size = static_cast<std::size_t>(group.size());
  std::vector<std::int32_t> ranks(size);
  const std::vector<std::int64_t> rows(size, 1);
  const std::int32_t mine = world_rank;
  group.AllGatherRows(
      TensorView(reinterpret_cast<std::byte*>(ranks.data()), DType::kI32, {group.size(), 1}),
      ConstTensorView(reinterpret_cast<const std::byte*>(&mine), DType::kI32, {1, 1}), rows,
      stream);
  return ranks;
}

void CheckMesh(const ParallelPlan& plan) {
  SCOPED_TRACE(plan.ToString());
  RunLocalWorld(plan.world(), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const Mesh mesh = MakeMesh(plan, std::move(world));
    EXPECT_EQ(mesh.seat.world_rank, rank);
    EXPECT_EQ(mesh.leader(), rank == 0);
    EXPECT_EQ(mesh.tensor->rank(), mesh.seat.tensor);
    EXPECT_EQ(mesh.data->rank(), mesh.seat.data);
    std::vector<std::int32_t> tensor;
    for (int t = 0; t < plan.tensor; ++t) tensor.push_back(mesh.seat.data * plan.tensor + t);
    EXPECT_EQ(WorldRanksOf(*mesh.tensor, rank), tensor);
    std::vector<std::int32_t> data;
    for (int d = 0; d < plan.data; ++d) data.push_back(d * plan.tensor + mesh.seat.tensor);
    EXPECT_EQ(WorldRanksOf(*mesh.data, rank), data);
    EXPECT_EQ(mesh.node->size(), plan.world());
    EXPECT_EQ(mesh.world->size(), plan.world());
  });
}

TEST(MeshTest, GroupsHoldTheRanksOfTheirSeats) {
  CheckMesh(MakePlan(1, 8, Exchange::kReplicated, std::nullopt, 1));
  CheckMesh(MakePlan(4, 8, Exchange::kReplicated, 2, 1));
  CheckMesh(MakePlan(6, 8, Exchange::kAllToAll, 3, 2));
  CheckMesh(MakePlan(8, 8, Exchange::kAllToAll, std::nullopt, 4));
  CheckMesh(MakePlan(8, 8, Exchange::kReplicated, std::nullopt, 8));
}

}  // namespace
}  // namespace jubal

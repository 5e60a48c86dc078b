#include "parallel/plan.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/error.h"

namespace jubal {
namespace {

void Require(bool holds, const std::string& message) {
  if (!holds) throw UserError(ExitStatus::kUsage, message);
}

int LargestDivisorUpTo(int number, int limit) {
  int divisor = std::min(number, limit);
  while (number % divisor != 0) --divisor;
  return divisor;
}

}  // namespace

std::string ParallelPlan::ToString() const {
  return fmt::format("data {} × tensor {} = expert {} × expert_tensor {}, {}", data, tensor, expert,
                     expert_tensor,
                     exchange == Exchange::kReplicated ? "replicated" : "all-to-all");
}

ParallelPlan MakePlan(int world, int experts, Exchange exchange, std::optional<int> expert_parallel,
                      int data_parallel) {
  CHECK_GE(world, 1);
  CHECK_GE(experts, 1);
  Require(data_parallel >= 1,
          fmt::format("the data-parallel degree is {}; give at least 1", data_parallel));
  Require(world % data_parallel == 0,
          fmt::format("the data-parallel degree {} does not divide the {} ranks; "
                      "give a divisor of {}",
                      data_parallel, world, world));
  const int expert =
      expert_parallel
          ? *expert_parallel
          : (exchange == Exchange::kReplicated ? 1 : LargestDivisorUpTo(world, experts));
  Require(expert >= 1, fmt::format("the expert-parallel degree is {}; give at least 1", expert));
  Require(world % expert == 0,
          fmt::format("the expert-parallel degree {} does not divide the {} ranks; "
                      "give a divisor of {}",
                      expert, world, world));
  Require(expert <= experts,
          fmt::format("the expert-parallel degree {} is more than the model's {} experts; "
                      "give at most {}",
                      expert, experts, experts));
  ParallelPlan plan{.data = data_parallel,
                    .tensor = world / data_parallel,
                    .expert = expert,
                    .expert_tensor = world / expert,
                    .exchange = exchange};
  Require(plan.tensor <= kChunks,
          fmt::format("{} ranks at data-parallel degree {} would divide one attention layer over "
                      "{} ranks, but at most {} can share it; raise the data-parallel degree",
                      world, plan.data, plan.tensor, kChunks));
  Require(plan.expert_tensor <= kChunks,
          fmt::format("{} ranks at expert-parallel degree {} would divide one expert over {} "
                      "ranks, but at most {} can share it; raise the expert-parallel degree",
                      world, plan.expert, plan.expert_tensor, kChunks));
  return plan;
}

Range OwnedRange(std::int64_t extent, int index, int count) {
  CHECK(0 <= index && index < count);
  return {extent * index / count, extent * (index + 1) / count};
}

Seat SeatOf(const ParallelPlan& plan, int world_rank) {
  CHECK(0 <= world_rank && world_rank < plan.world());
  return {.world_rank = world_rank,
          .data = world_rank / plan.tensor,
          .tensor = world_rank % plan.tensor,
          .expert = world_rank / plan.expert_tensor,
          .expert_tensor = world_rank % plan.expert_tensor};
}

Range OwnedExperts(const ParallelPlan& plan, int experts, int group) {
  return OwnedRange(experts, group, plan.expert);
}

}  // namespace jubal

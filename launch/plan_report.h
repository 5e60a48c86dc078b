#ifndef JUBAL_LAUNCH_PLAN_REPORT_H_
#define JUBAL_LAUNCH_PLAN_REPORT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "launch/options.h"
#include "parallel/plan.h"
#include "runtime/memory_plan.h"
#include "runtime/model_source.h"

namespace jubal {

/// What every rank of a job would hold.
struct PlanReport {
  ParallelPlan plan;
  std::vector<MemoryPlan> ranks;

  std::int64_t total_bytes() const;  // weights that ranks share through a mapping count for each
  std::int64_t own_bytes() const;    // without such weights
  std::int64_t largest() const;      // of one rank
};

/// Bytes of one kind ("KV pages") on a rank; 0 if it has none.
std::int64_t BytesOf(const MemoryPlan& memory, std::string_view kind);

/// A model directory, or a published model by name.
ModelSource OpenOrPublished(const std::string& model);

/// For `ranks` ranks and the options' other settings. Throws UserError when there is no such plan.
PlanReport MakePlanReport(const ModelSource& source, const Options& options, int ranks);

/// Throws UserError(kConfig) when a rank of `report` needs more than options.device_memory: the
/// message has the numbers, and the change that makes it fit.
void CheckFits(const ModelSource& source, const Options& options, const PlanReport& report);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_PLAN_REPORT_H_

#include "launch/plan_report.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "kernels/error.h"
#include "launch/memory_size.h"

namespace jubal {
namespace {

/// More ranks than the report has that fit the device: the fewest, up to 8. `fallback` becomes the
/// most ranks that there is a plan for.
std::optional<PlanReport> FirstFit(const ModelSource& source, const Options& options, int ranks,
                                   PlanReport& fallback) {
  for (int more = ranks + 1; more <= kChunks; ++more) {
    try {
      fallback = MakePlanReport(source, options, more);
    } catch (const UserError&) {
      continue;  // the degrees that were asked for do not divide so many ranks
    }
    if (fallback.largest() <= *options.device_memory) return fallback;
  }
  return std::nullopt;
}

/// What keys and values may take at most for the rest to fit, if that is enough for any.
std::optional<std::int64_t> SmallerKvMemory(const ModelSource& source, Options options,
                                            const PlanReport& report) {
  const auto largest = std::max_element(
      report.ranks.begin(), report.ranks.end(),
      [](const MemoryPlan& a, const MemoryPlan& b) { return a.total() < b.total(); });
  options.serving.kv_memory = *options.device_memory - (largest->total() - largest->kv_bytes);
  if (options.serving.kv_memory <= 0) return std::nullopt;
  try {
    const PlanReport smaller = MakePlanReport(source, options, report.plan.world());
    if (smaller.largest() > *options.device_memory) return std::nullopt;
  } catch (const UserError&) {
    return std::nullopt;  // not one page
  }
  return options.serving.kv_memory;
}

}  // namespace

std::int64_t PlanReport::total_bytes() const {
  std::int64_t bytes = 0;
  for (const MemoryPlan& memory : ranks) bytes += memory.total();
  return bytes;
}

std::int64_t PlanReport::own_bytes() const {
  std::int64_t bytes = 0;
  for (const MemoryPlan& memory : ranks) bytes += memory.own();
  return bytes;
}

std::int64_t PlanReport::largest() const {
  std::int64_t bytes = 0;
  for (const MemoryPlan& memory : ranks) bytes = std::max(bytes, memory.total());
  return bytes;
}

std::int64_t BytesOf(const MemoryPlan& memory, std::string_view kind) {
  for (const MemoryLine& line : memory.lines) {
    if (line.what == kind) return line.bytes;
  }
  return 0;
}

ModelSource OpenOrPublished(const std::string& model) {
  if (std::optional<ModelSource> published = ModelSource::Published(model)) {
    return std::move(*published);
  }
  return ModelSource::Open(model);
}

PlanReport MakePlanReport(const ModelSource& source, const Options& options, int ranks) {
  PlanReport report{
      .plan = MakePlan(ranks, static_cast<int>(source.model().experts), options.exchange,
                       options.expert_parallel, options.data_parallel),
      .ranks = {}};
  for (int rank = 0; rank < ranks; ++rank) {
    report.ranks.push_back(
        PlanMemory(source, report.plan, SeatOf(report.plan, rank), options.serving));
  }
  return report;
}

void CheckFits(const ModelSource& source, const Options& options, const PlanReport& report) {
  if (report.largest() <= *options.device_memory) return;
  std::string message = fmt::format("{} needs {} on a rank with -n {}, but --device-memory is {}",
                                    source.name(), MemorySizeText(report.largest()),
                                    report.plan.world(), MemorySizeText(*options.device_memory));
  PlanReport most = report;
  const std::optional<PlanReport> fit = FirstFit(source, options, report.plan.world(), most);
  const std::optional<std::int64_t> kv_memory = SmallerKvMemory(source, options, report);
  if (fit) {
    message += fmt::format(": use -n {}, which needs {}", fit->plan.world(),
                           MemorySizeText(fit->largest()));
    if (kv_memory) message += fmt::format(", or --kv-memory {}", *kv_memory);
  } else if (kv_memory) {
    message += fmt::format(": use --kv-memory {}", *kv_memory);
  } else if (most.plan.world() > report.plan.world()) {
    message += fmt::format(": even with -n {} it needs {}", most.plan.world(),
                           MemorySizeText(most.largest()));
  } else {
    message += ": use ranks with more memory";
  }
  throw UserError(ExitStatus::kConfig, message);
}

}  // namespace jubal

#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/paged_attention.h"
#include "launch/commands.h"
#include "launch/memory_size.h"
#include "launch/plan_report.h"

namespace jubal {
namespace {

void PrintTable(const ModelSource& source, const PlanReport& report) {
  const ModelDescription& m = source.model();
  const StepLimits& limits = report.ranks.front().limits;
  fmt::print(
      "{}: {}, {} layers, hidden {}, {} query and {} KV heads, {} experts of {}, top {}, "
      "vocabulary {}\n",
      source.name(), m.family, m.layers, m.hidden, m.heads, m.kv_heads, m.experts, m.expert_hidden,
      m.top_k, m.vocabulary);
  fmt::print("{} rank{}: {}\n\n", report.plan.world(), report.plan.world() == 1 ? "" : "s",
             report.plan.ToString());

  // The leader has every line that any rank has.
  const std::vector<MemoryLine>& kinds = report.ranks.front().lines;
  fmt::print("{:<22}", "rank");
  for (std::size_t r = 0; r < report.ranks.size(); ++r) fmt::print("{:>12}", r);
  fmt::print("\n");
  for (const MemoryLine& kind : kinds) {
    fmt::print("{:<22}", kind.what);
    for (const MemoryPlan& memory : report.ranks) {
      fmt::print("{:>12}", MemorySizeText(BytesOf(memory, kind.what)));
    }
    fmt::print("\n");
  }
  fmt::print("{:<22}", "total");
  for (const MemoryPlan& memory : report.ranks) {
    fmt::print("{:>12}", MemorySizeText(memory.total()));
  }
  std::string weights;
  if (source.packed()) {
    fmt::print("\n{:<22}", "of its own");
    for (const MemoryPlan& memory : report.ranks) {
      fmt::print("{:>12}", MemorySizeText(memory.own()));
    }
    weights = fmt::format(" and, in the page cache of each node, up to {} of {}",
                          MemorySizeText(source.stored_bytes()), kPackFileName);
  }
  fmt::print(
      "\n\nall ranks together {}{}; keys and values of {} tokens{}, {} of them in one "
      "request\n",
      MemorySizeText(report.own_bytes()), weights, limits.num_pages * kPageTokens,
      report.plan.data == 1 ? "" : " in each data group", limits.context);
}

void PrintJson(const ModelSource& source, const PlanReport& report) {
  const StepLimits& limits = report.ranks.front().limits;
  nlohmann::json per_rank = nlohmann::json::array();
  for (std::size_t r = 0; r < report.ranks.size(); ++r) {
    const MemoryPlan& memory = report.ranks[r];
    nlohmann::json lines = nlohmann::json::object();
    for (const MemoryLine& line : memory.lines) lines[line.what] = line.bytes;
    per_rank.push_back({{"rank", r},
                        {"total", memory.total()},
                        {"own", memory.own()},
                        {"weights", memory.weight_bytes},
                        {"kv", memory.kv_bytes},
                        {"activations", memory.activation_bytes},
                        {"segments", memory.segment_bytes},
                        {"lines", lines}});
  }
  const nlohmann::json json{{"model", source.name()},
                            {"ranks", report.plan.world()},
                            {"plan", report.plan.ToString()},
                            {"per_rank", per_rank},
                            {"total_bytes", report.total_bytes()},
                            {"own_bytes", report.own_bytes()},
                            {"kv_tokens", limits.num_pages * kPageTokens},
                            {"context", limits.context}};
  fmt::print("{}\n", json.dump());
}

}  // namespace

int RunPlan(const Options& options) {
  const ModelSource source = OpenOrPublished(options.model);
  const PlanReport report = MakePlanReport(source, options, options.ranks);
  if (options.device_memory) CheckFits(source, options, report);
  if (options.json) {
    PrintJson(source, report);
  } else {
    PrintTable(source, report);
  }
  return EXIT_SUCCESS;
}

}  // namespace jubal

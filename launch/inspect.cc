#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/chunks.h"
#include "kernels/error.h"
#include "kernels/threads.h"
#include "launch/commands.h"
#include "launch/memory_size.h"
#include "launch/plan_report.h"
#include "launch/progress_line.h"
#include "runtime/checkpoint/stored_tensor.h"

namespace jubal {
namespace {

/// One row of the table of tensors.
struct TensorRow {
  std::string name;  // in the files; empty without files
  std::string role;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string file;
};

std::string FormatText(const WeightFormat& format) {
  if (!HasScales(format.type)) return std::string(NameOf(format.type));
  return fmt::format("{} / {} rows", NameOf(format.type), format.group_rows);
}

std::vector<TensorRow> ListTensors(const ModelSource& source) {
  std::vector<TensorRow> rows;
  const auto add_stored = [&](const StoredTensor& tensor, const std::string& role) {
    rows.push_back({.name = tensor.name,
                    .role = role,
                    .dtype = std::string(NameOf(tensor.dtype)),
                    .shape = tensor.shape,
                    .file = tensor.file->path().filename().string()});
  };
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (source.has_files()) {
      const WeightFiles& files = source.files(i);
      for (const StoredTensor* tensor : files.tensors) add_stored(*tensor, spec.Name());
      if (files.scales != nullptr) add_stored(*files.scales, spec.Name() + " scales");
    } else {
      TensorRow row{.name = "",
                    .role = spec.Name(),
                    .dtype = FormatText(source.format(i)),
                    .shape = {spec.k},
                    .file = source.packed() ? std::string(kPackFileName) : ""};
      if (spec.n > 0) row.shape.push_back(spec.n);
      if (spec.expert_stack) row.shape.insert(row.shape.begin(), source.model().experts);
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

/// What one rank holds of the model.
struct Share {
  Range heads;
  Range kv_heads;
  Range attention_chunks;
  Range experts;
  Range expert_chunks;
};

Share ShareOf(const ModelDescription& model, const ParallelPlan& plan, int rank) {
  const Seat seat = SeatOf(plan, rank);
  return {.heads = OwnedHeads(model, seat.tensor, plan.tensor),
          .kv_heads = OwnedKvHeads(model, seat.tensor, plan.tensor),
          .attention_chunks = OwnedChunks(seat.tensor, plan.tensor),
          .experts = OwnedExperts(plan, static_cast<int>(model.experts), seat.expert),
          .expert_chunks = OwnedChunks(seat.expert_tensor, plan.expert_tensor)};
}

std::string RangeText(const Range& range) {
  if (range.size() == 1) return fmt::format("{}", range.begin);
  return fmt::format("{}-{}", range.begin, range.end - 1);
}

void PrintTables(const ModelSource& source, const PlanReport& report) {
  const std::string naming = source.has_files() ? ", names of " + source.naming()
                             : source.packed()  ? ", packed"
                                                : "";
  fmt::print("{}: {}{}, {} as stored\n\n", source.name(), source.model().family, naming,
             MemorySizeText(source.stored_bytes()));
  const std::vector<TensorRow> rows = ListTensors(source);
  std::size_t name_width = 6;
  std::size_t role_width = 4;
  std::size_t shape_width = 5;
  for (const TensorRow& row : rows) {
    name_width = std::max(name_width, row.name.size());
    role_width = std::max(role_width, row.role.size());
    shape_width = std::max(shape_width, ShapeText(row.shape).size());
  }
  const auto print_row = [&](std::string_view name, std::string_view role, std::string_view dtype,
                             std::string_view shape, std::string_view file) {
    const std::string line = fmt::format("{:<{}}  {:<{}}  {:<16}  {:<{}}  {}", name, name_width,
                                         role, role_width, dtype, shape, shape_width, file);
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
  };
  print_row(source.has_files() ? "tensor" : "", "role", "type", "shape",
            source.has_files() || source.packed() ? "file" : "");
  for (const TensorRow& row : rows) {
    print_row(row.name, row.role, row.dtype, ShapeText(row.shape), row.file);
  }

  fmt::print("\n{}\n{:<6}{:>12}{:>10}{:>10}{:>10}{:>16}{:>12}\n", report.plan.ToString(), "rank",
             "query heads", "KV heads", "chunks", "experts", "expert chunks", "memory");
  for (int rank = 0; rank < report.plan.world(); ++rank) {
    const Share share = ShareOf(source.model(), report.plan, rank);
    fmt::print("{:<6}{:>12}{:>10}{:>10}{:>10}{:>16}{:>12}\n", rank, RangeText(share.heads),
               RangeText(share.kv_heads), RangeText(share.attention_chunks),
               RangeText(share.experts), RangeText(share.expert_chunks),
               MemorySizeText(report.ranks[static_cast<std::size_t>(rank)].total()));
  }
}

nlohmann::json Pair(const Range& range) { return {range.begin, range.end}; }

void PrintJson(const ModelSource& source, const PlanReport& report) {
  nlohmann::json tensors = nlohmann::json::array();
  for (const TensorRow& row : ListTensors(source)) {
    tensors.push_back({{"name", row.name},
                       {"role", row.role},
                       {"dtype", row.dtype},
                       {"shape", row.shape},
                       {"file", row.file}});
  }
  nlohmann::json per_rank = nlohmann::json::array();
  for (int rank = 0; rank < report.plan.world(); ++rank) {
    const Share share = ShareOf(source.model(), report.plan, rank);
    per_rank.push_back({{"rank", rank},
                        {"heads", Pair(share.heads)},
                        {"kv_heads", Pair(share.kv_heads)},
                        {"chunks", Pair(share.attention_chunks)},
                        {"experts", Pair(share.experts)},
                        {"expert_chunks", Pair(share.expert_chunks)},
                        {"total", report.ranks[static_cast<std::size_t>(rank)].total()}});
  }
  const nlohmann::json json{{"model", source.name()},
                            {"family", source.model().family},
                            {"stored_bytes", source.stored_bytes()},
                            {"tensors", tensors},
                            {"plan", report.plan.ToString()},
                            {"per_rank", per_rank}};
  fmt::print("{}\n", json.dump());
}

}  // namespace

int RunInspect(const Options& options) {
  const ModelSource source = OpenOrPublished(options.model);
  const PlanReport report = MakePlanReport(source, options, options.ranks);
  if (options.verify) {
    if (!source.packed()) {
      throw UserError(ExitStatus::kUsage,
                      fmt::format("--verify needs a packed model, but {} has no {}", source.name(),
                                  kPackFileName));
    }
    VerifyPack(source.pack(), MostThreads(), ProgressLine("verifying", "verified"));
  }
  if (options.json) {
    PrintJson(source, report);
  } else {
    PrintTables(source, report);
  }
  return EXIT_SUCCESS;
}

}  // namespace jubal

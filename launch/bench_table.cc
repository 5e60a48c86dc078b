#include "launch/bench_table.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/memory_size.h"

namespace jubal {
namespace {

std::string Text(const BenchRow& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string SizeText(const BenchRow& value) {
  return MemorySizeText(static_cast<std::int64_t>(value.get<double>()));
}

/// One column of the table for people.
struct Column {
  std::string_view title;
  std::size_t width;
  std::string_view name;  // in a row
  std::string (*text)(const BenchRow& row, const BenchRow& value);
  std::string_view beside;  // only for rows that have this, too; empty: for all
};

std::string AsItIs(const BenchRow&, const BenchRow& value) { return Text(value); }
std::string AsShare(const BenchRow&, const BenchRow& value) {
  return fmt::format("{:.2f}", value.get<double>());
}

constexpr std::array kColumns{
    Column{"test", 8, "test", AsItIs, ""},
    Column{"batch", 5, "batch", AsItIs, ""},
    Column{"depth", 6, "depth", AsItIs, ""},
    Column{"ranks", 5, "ranks", AsItIs, ""},
    Column{"tokens/s", 16, "tokens_per_second",
           [](const BenchRow& row, const BenchRow& value) {
             return fmt::format("{:.2f} ± {:.2f}", value.get<double>(),
                                row.at("stddev").get<double>());
           },
           ""},
    Column{"bytes/step", 10, "bytes_per_step",
           [](const BenchRow&, const BenchRow& value) { return SizeText(value); }, ""},
    Column{"read bandwidth", 14, "read_bandwidth",
           [](const BenchRow&, const BenchRow& value) { return SizeText(value) + "/s"; }, ""},
    Column{"of bandwidth", 12, "bandwidth_ratio", AsShare, ""},
    Column{"of peak", 7, "compute_ratio", AsShare, ""},
    Column{"speedup", 7, "speedup", AsShare, "speedup"},
    Column{"efficiency", 10, "efficiency", AsShare, "speedup"},
    Column{"tokens hash", 16, "tokens_hash", AsItIs, "speedup"}};

std::vector<const Column*> ColumnsOf(const BenchRow& row) {
  std::vector<const Column*> columns;
  for (const Column& column : kColumns) {
    if (column.beside.empty() || row.contains(column.beside)) columns.push_back(&column);
  }
  return columns;
}

void PrintMarkdownHead(const BenchRow& row) {
  std::string head = "|";
  std::string rule = "|";
  for (const Column* column : ColumnsOf(row)) {
    head += fmt::format(" {:>{}} |", column->title, column->width);
    rule += fmt::format(" {}: |", std::string(column->width - 1, '-'));
  }
  fmt::print("{}\n{}\n", head, rule);
}

void PrintMarkdown(const BenchRow& row) {
  std::string line = "|";
  for (const Column* column : ColumnsOf(row)) {
    line += fmt::format(" {:>{}} |", column->text(row, row.at(std::string(column->name))),
                        column->width);
  }
  fmt::print("{}\n", line);
}

/// As RFC 4180 wants it.
std::string Quoted(std::string text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  for (std::size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) {
    text.insert(at, 1, '"');
  }
  return fmt::format("\"{}\"", text);
}

void PrintCsv(const BenchRow& row, bool head) {
  std::vector<std::string> cells;
  for (const auto& [name, value] : row.items()) cells.push_back(Quoted(head ? name : Text(value)));
  fmt::print("{}\n", fmt::join(cells, ","));
}

}  // namespace

BenchTable::BenchTable(const Options& options)
    : form_(options.json        ? Form::kJson
            : options.bench.csv ? Form::kCsv
                                : Form::kMarkdown) {}

void BenchTable::Add(const BenchRow& row) {
  switch (form_) {
    case Form::kMarkdown:
      if (empty_) PrintMarkdownHead(row);
      PrintMarkdown(row);
      break;
    case Form::kCsv:
      if (empty_) PrintCsv(row, /*head=*/true);
      PrintCsv(row, /*head=*/false);
      break;
    case Form::kJson:
      list_.push_back(row);
      break;
  }
  empty_ = false;
  std::fflush(stdout);
}

void BenchTable::Finish() {
  if (form_ == Form::kJson) fmt::print("{}\n", list_.dump(1));
  std::fflush(stdout);
}

}  // namespace jubal

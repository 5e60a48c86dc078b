#ifndef JUBAL_LAUNCH_BENCH_TABLE_H_
#define JUBAL_LAUNCH_BENCH_TABLE_H_

#include <string>

#include <nlohmann/json.hpp>

#include "launch/options.h"

namespace jubal {

/// One line of a benchmark: names and values, in the order of the columns.
using BenchRow = nlohmann::ordered_json;

/// Prints the lines of a benchmark on standard output: in Markdown the columns that people compare,
/// as CSV all of them, both line by line as they come; as JSON one list in the end. All rows have
/// the same names.
class BenchTable {
 public:
  explicit BenchTable(const Options& options);

  void Add(const BenchRow& row);
  void Finish();

 private:
  enum class Form { kMarkdown, kCsv, kJson };

  const Form form_;
  bool empty_ = true;
  BenchRow list_ = BenchRow::array();  // kJson
};

}  // namespace jubal

#endif  // JUBAL_LAUNCH_BENCH_TABLE_H_

#include "launch/bench_scaling.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include <fmt/format.h>

#include "launch/bench_table.h"
#include "launch/child_process.h"
#include "launch/mpirun.h"
#include "launch/world.h"

namespace jubal {
namespace {

/// Which line of the table: those of all runs that are alike are compared.
using LineKey = std::tuple<std::string, std::int64_t, std::int64_t>;

LineKey KeyOf(const BenchRow& row) { return {row.at("test"), row.at("batch"), row.at("depth")}; }

/// Of all ranks together.
double ThreadsOf(const BenchRow& row) {
  return row.at("ranks").get<double>() * row.at("threads").get<double>();
}

/// Runs the command to its end and returns what it printed; `status` becomes waitpid's.
std::string OutputOf(ChildCommand command, int& status) {
  std::array<int, 2> pipe{};
  if (pipe2(pipe.data(), O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "pipe2");
  }
  command.output_fd = pipe[1];
  const pid_t child = StartChild(command);
  close(pipe[1]);
  std::string output;
  std::array<char, 1 << 14> bytes{};
  for (ssize_t size = 0; (size = read(pipe[0], bytes.data(), bytes.size())) > 0;) {
    output.append(bytes.data(), static_cast<std::size_t>(size));
  }
  close(pipe[0]);
  waitpid(child, &status, 0);
  return output;
}

ChildCommand JobOf(const Options& options, int ranks) {
  MpiJob job{.program = std::filesystem::read_symlink("/proc/self/exe"),
             .ranks = ranks,
             .hostfile = {},
             .mpirun_arguments = {},
             .rank_arguments = {"bench", "--json"},
             .token = {},
             .session_directory = {},
             .shared_memory_directory = {}};
  job.rank_arguments.insert(job.rank_arguments.end(), options.rank_arguments.begin(),
                            options.rank_arguments.end());
  return MpirunCommand(job);
}

}  // namespace

int RunScaling(const Options& options) {
  BenchTable table(options);
  std::map<LineKey, BenchRow> first;  // the run that all are compared with
  std::string difference;
  for (const int ranks : options.bench.scaling) {
    int status = 0;
    const std::string output = OutputOf(JobOf(options, ranks), status);
    if (status != 0) {
      PrintError(fmt::format("the run on {} rank{} ended with {}", ranks, ranks == 1 ? "" : "s",
                             EndText(status)));
      return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
    }
    for (BenchRow row : BenchRow::parse(output)) {
      const BenchRow& base = first.emplace(KeyOf(row), row).first->second;
      const double speedup =
          row.at("tokens_per_second").get<double>() / base.at("tokens_per_second").get<double>();
      row["speedup"] = speedup;
      row["efficiency"] = speedup * ThreadsOf(base) / ThreadsOf(row);
      table.Add(row);
      if (row.at("tokens_hash") != base.at("tokens_hash") && difference.empty()) {
        difference = fmt::format(
            "{} at batch {} and depth {} drew other tokens on {} ranks than on {}: tokens_hash is "
            "{} and {}",
            row.at("test").get<std::string>(), row.at("batch").get<int>(),
            row.at("depth").get<int>(), ranks, base.at("ranks").get<int>(),
            row.at("tokens_hash").get<std::string>(), base.at("tokens_hash").get<std::string>());
      }
    }
  }
  table.Finish();
  if (!difference.empty()) throw std::runtime_error(difference);
  return EXIT_SUCCESS;
}

}  // namespace jubal

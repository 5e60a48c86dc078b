#include <clocale>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "kernels/error.h"
#include "launch/commands.h"
#include "launch/gpu_driver.h"
#include "launch/options.h"
#include "launch/world.h"

namespace jubal {
namespace {

int Run(const Options& options) {
  switch (options.command) {
    case Command::kServe:
      return RunServe(options);
    case Command::kRank:
      return RunRank(options);
    case Command::kGenerate:
      return RunGenerate(options);
    case Command::kScore:
      return RunScore(options);
    case Command::kBench:
      return RunBench(options);
    case Command::kChat:
      return RunChat(options);
    case Command::kInspect:
      return RunInspect(options);
    case Command::kPlan:
      return RunPlan(options);
    case Command::kPack:
      return RunPack(options);
    case Command::kCoordinator:
      return RunCoordinatorProcess(options);
    case Command::kVersion:
      fmt::print("jubal {}\n", JUBAL_VERSION);
      return EXIT_SUCCESS;
    case Command::kHelp:
      fmt::print("{}", options.help);
      return EXIT_SUCCESS;
  }
  return EXIT_FAILURE;
}

/// For errors that come before MPI: all ranks have the same command line.
int Fail(std::string_view message, int status) {
  if (LaunchedRank() > 0) LetOthersSpeakFirst();
  PrintError(message);
  return status;
}

int Main(const std::vector<std::string>& arguments) {
  try {
    Options options = ParseCommandLine(arguments);
    options.gpus = ProgramGpuDriver();
    return Run(options);
  } catch (const UserError& error) {
    return Fail(error.what(), static_cast<int>(error.status()));
  } catch (const std::exception& error) {
    return Fail(error.what(), EXIT_FAILURE);
  }
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "C.UTF-8");
  // Standard output is for results.
  spdlog::set_default_logger(spdlog::stderr_logger_mt("jubal"));
  return jubal::Main({argv + 1, argv + argc});
}

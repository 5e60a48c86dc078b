#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "kernels/error.h"
#include "launch/commands.h"
#include "launch/plan_report.h"
#include "launch/request_input.h"
#include "launch/supervisor.h"
#include "rpc/coordinator.h"
#include "rpc/rank_link.h"

namespace jubal {
namespace {

bool IsLoopback(const std::string& listen) {
  const std::string host = listen.substr(0, listen.rfind(':'));
  return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

}  // namespace

int RunServe(const Options& options) {
  if (!options.insecure && !IsLoopback(options.listen)) {
    throw UserError(ExitStatus::kUsage,
                    fmt::format("--listen {} may be reached by other hosts, without encryption "
                                "and token: add --insecure if that is meant, or listen on "
                                "127.0.0.1",
                                options.listen));
  }
  if (options.hostfile && access(options.hostfile->c_str(), R_OK) != 0) {
    throw UserError(ExitStatus::kNoInput,
                    fmt::format("--hostfile {} cannot be read", *options.hostfile));
  }
  // What cannot work is refused here, in one sentence, before anything starts.
  const ModelSource source = ModelSource::Open(options.model);
  OpenTokenizer(source);
  MakePlanReport(source, options, options.ranks);
  return Supervise(options);
}

int RunCoordinatorProcess(const Options& options) {
  CoordinatorOptions coordinator;
  coordinator.listen = options.listen;
  coordinator.control = options.control;
  if (const char* const token = std::getenv(kControlTokenVariable)) {
    coordinator.control_token = token;
  }
  const std::filesystem::path tokenizer = std::filesystem::path(options.model) / "tokenizer.model";
  if (std::filesystem::exists(tokenizer)) coordinator.tokenizer = tokenizer;
  coordinator.ranks = static_cast<std::uint32_t>(options.ranks);
  coordinator.supervisor_fd = options.supervisor_fd;
  return RunCoordinator(coordinator);
}

}  // namespace jubal

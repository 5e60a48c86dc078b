#ifndef JUBAL_LAUNCH_SUPERVISOR_H_
#define JUBAL_LAUNCH_SUPERVISOR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "launch/options.h"

namespace jubal {

/// What the coordinator tells the supervisor, one line each (rpc/coordinator.h).
struct ControlAt {
  std::string address;
};
struct ListeningAt {
  std::string address;
};
struct Serving {
  std::uint32_t epoch = 0;
};
struct EpochFailed {
  std::uint32_t epoch = 0;
  std::string reason;
};
using CoordinatorLine = std::variant<ControlAt, ListeningAt, Serving, EpochFailed>;

/// Nothing for a line that is none of these.
std::optional<CoordinatorLine> ParseCoordinatorLine(std::string_view line);

/// Runs a server until SIGINT or SIGTERM: a coordinator, and beside it one MPI job after the other,
/// as each fails. Prints one line with 'ready' and the address on standard output. When it returns,
/// none of its processes, sockets and files is left. This process has one thread and touches
/// neither gRPC nor MPI, so that it may fork. Returns the exit status; throws UserError.
int Supervise(const Options& options);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_SUPERVISOR_H_

// A rank whose peer breaks the agreement must say so and end the job: if it went on, or waited, the
// supervisor would not start the next one.
//
// Run by mpirun on two ranks, with the name of what should go wrong: over which communicator, and
// what. Passes when the job ends non-zero and rank 1 has printed the CommunicationError, or the job
// has the status of rank 1, for which rank 0 waits.

#include <csignal>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/gather_values.h"
#include "parallel/mpi_communicator.h"
#include "parallel/row_transfer.h"
#include "parallel/shared_memory_communicator.h"

namespace jubal {
namespace {

constexpr int kAbortStatus = 71;

/// Rank 0 sends more rows than rank 1 expects.
void SendTooMuch(Communicator& world) {
  Stream stream;
  std::vector<float> send(4);
  std::vector<float> recv(4);
  const std::vector<std::int64_t> none(2, 0);
  std::vector<std::int64_t> send_rows(2, 0);
  std::vector<std::int64_t> recv_rows(2, 0);
  if (world.rank() == 0) send_rows[1] = 4;
  if (world.rank() == 1) recv_rows[0] = 1;
  const auto view = [](std::vector<float>& floats) {
    return TensorView(reinterpret_cast<std::byte*>(floats.data()), DType::kF32, {4, 1});
  };
  world.AllToAllRows(view(recv), recv_rows, view(send), send_rows, stream);
}

int Main(std::string_view failure) {
  try {
    MpiSession session;
    std::unique_ptr<Communicator> world = session.World();
    if (failure.starts_with("shared")) {
      world = OverSharedMemory(std::move(world), {.while_waiting = MpiSession::Progress});
    }
    if (failure.ends_with("much")) {
      SendTooMuch(*world);
    } else if (world->rank() == 1) {
      if (failure.ends_with("kill")) std::raise(SIGKILL);
      MpiSession::Abort(kAbortStatus);
    }
    GatherValues(*world, world->rank());
  } catch (const CommunicationError& error) {
    std::fprintf(stderr, "CommunicationError: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) { return jubal::Main(argc > 1 ? argv[1] : ""); }

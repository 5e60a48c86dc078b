// A rank whose peer breaks the agreement must say so and end the job: if it went on, or waited, the
// supervisor would not start the next one.
//
// Run by mpirun on two ranks, with the name of what should go wrong. Passes when the job ends
// non-zero and rank 1 has printed the CommunicationError, or the job has the aborting status.

#include <cstdio>
#include <cstring>
#include <vector>

#include "parallel/mpi_communicator.h"

namespace jubal {
namespace {

constexpr int kAbortStatus = 71;

/// Rank 0 sends more rows than rank 1 expects.
void SendTooMuch(Communicator& world) {
  Stream stream(Device::kCpu);
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

int Main(const char* failure) {
  try {
    MpiSession session;
    const std::unique_ptr<Communicator> world = session.World();
    if (std::strcmp(failure, "abort") == 0) {
      if (world->rank() == 1) MpiSession::Abort(kAbortStatus);
    } else {
      SendTooMuch(*world);
    }
    world->Barrier();
  } catch (const CommunicationError& error) {
    std::fprintf(stderr, "CommunicationError: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace jubal

int main(int argc, char** argv) { return jubal::Main(argc > 1 ? argv[1] : ""); }

#ifndef JUBAL_TESTS_PARALLEL_FAKE_NCCL_H_
#define JUBAL_TESTS_PARALLEL_FAKE_NCCL_H_

#include <atomic>
#include <string>

namespace jubal {

/// The NCCL of a test program: what parallel/nccl_communicator.cc calls, for emulated GPUs
/// (tests/kernels/emulated_gpu), over MPI. It holds its callers to what NCCL asks of those who use
/// it without blocking: every call is in progress for a while, meanwhile the communicator takes no
/// other, and only then has the work reached the stream.
///
/// This is what a test may set, on one rank or all, and what it may look at.
struct FakeNccl {
  int version = 22809;
  int polls = 3;                           // for so many looks a call is in progress
  bool connects = true;                    // if not, making communicators never ends
  int calls_until_error = -1;              // then the work of one never ends, and an error is found
  bool refuses_calls = false;              // every call for the GPU is an error at once
  std::atomic<bool> keeps_aborts = false;  // ncclCommAbort does not return
  std::atomic<int> made = 0;               // communicators
  std::atomic<int> aborted = 0;
  std::string key;  // what ncclSetEncryption was told
};

/// Of this process.
FakeNccl& TheFakeNccl();

/// Once, on all ranks, when MPI is running.
void StartFakeNccl();

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_FAKE_NCCL_H_

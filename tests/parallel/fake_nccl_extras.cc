// What a later NCCL has, too: in a test program with this file, parallel/nccl_extras.cc finds it.

#include <cstddef>
#include <cstdint>

#include "tests/parallel/fake_nccl.h"

// NOLINTBEGIN(readability-identifier-naming): NCCL's names.

// nccl.h is not included: it may declare these, or not.
extern "C" {

struct FakeEncryptionConfig {
  std::size_t size;
  unsigned magic;
  unsigned version;
  int mode;
  const char* psk;
};

int ncclSetEncryption(const FakeEncryptionConfig* config) {
  constexpr int kInvalidArgument = 4;
  constexpr int kPreSharedKey = 1;
  if (config->size != sizeof(*config) || config->magic != 0xcafebeef ||
      config->mode != kPreSharedKey) {
    return kInvalidArgument;
  }
  jubal::TheFakeNccl().key = config->psk;
  return 0;
}

int ncclCommMemStats(const void* communicator, int statistic, std::uint64_t* value) {
  constexpr int kInvalidArgument = 4;
  constexpr int kTotal = 3;
  if (communicator == nullptr || statistic != kTotal) return kInvalidArgument;
  *value = 1000;
  return 0;
}

}  // extern "C"

// NOLINTEND(readability-identifier-naming)

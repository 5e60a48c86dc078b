#include "parallel/nccl_extras.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <nccl.h>

#include <cstddef>

#include "kernels/error.h"
#include "parallel/nccl_communicator.h"

namespace jubal {
namespace {

/// ncclEncryptionConfig_t, as NCCL 2.32 declares it.
struct EncryptionConfig {
  std::size_t size = sizeof(EncryptionConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = NCCL_VERSION(2, 32, 0);
  int mode = 1;  // NCCL_ENCRYPTION_MODE_PSK
  const char* psk = nullptr;
};
using SetEncryption = ncclResult_t (*)(const EncryptionConfig* config);

/// ncclStatGpuMemTotal of ncclCommMemStat_t, as NCCL 2.29.7 declares it.
constexpr int kTotalMemory = 3;
using MemStats = ncclResult_t (*)(ncclComm_t communicator, int statistic, std::uint64_t* value);

/// Null where the loaded library has no such function.
template <class Function>
Function Find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

constexpr std::size_t kShortestKey = 32;  // what NCCL 2.32 asks for

}  // namespace

std::optional<std::int64_t> NcclMemoryOf(ncclComm* communicator) {
  const auto statistics = Find<MemStats>("ncclCommMemStats");
  std::uint64_t bytes = 0;
  if (statistics == nullptr || statistics(communicator, kTotalMemory, &bytes) != ncclSuccess) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(bytes);
}

void EncryptNccl(const std::string& key) {
  if (key.size() < kShortestKey) {
    throw UserError(ExitStatus::kConfig, fmt::format("{} has {} bytes; NCCL wants at least {}",
                                                     kNcclKeyVariable, key.size(), kShortestKey));
  }
  const auto set = Find<SetEncryption>("ncclSetEncryption");
  if (set == nullptr) {
    throw UserError(ExitStatus::kConfig,
                    fmt::format("{} is set, but NCCL {} cannot encrypt; from 2.32 on it can, where "
                                "it is built with TLS",
                                kNcclKeyVariable, NcclVersion()));
  }
  const EncryptionConfig config{.psk = key.c_str()};
  if (set(&config) != ncclSuccess) {
    throw UserError(ExitStatus::kConfig,
                    fmt::format("{} is set, but NCCL {} does not take it: {}", kNcclKeyVariable,
                                NcclVersion(), ncclGetLastError(nullptr)));
  }
}

}  // namespace jubal

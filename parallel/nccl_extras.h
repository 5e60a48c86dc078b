#ifndef JUBAL_PARALLEL_NCCL_EXTRAS_H_
#define JUBAL_PARALLEL_NCCL_EXTRAS_H_

#include <cstdint>
#include <optional>
#include <string>

struct ncclComm;  // NCCL's, as nccl.h declares it

namespace jubal {

// What NCCL has in versions after the oldest that Jubal takes. Looked up in the library that is
// loaded, whatever it was compiled with.

/// The bytes of GPU memory that the communicator has taken, if the library tells.
std::optional<std::int64_t> NcclMemoryOf(ncclComm* communicator);

/// Lets all TCP connections that NCCL makes from now on be encrypted. Throws UserError (kConfig)
/// when the library cannot, or does not take the key.
void EncryptNccl(const std::string& key);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_NCCL_EXTRAS_H_

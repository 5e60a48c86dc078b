#ifndef JUBAL_PARALLEL_SHARED_MEMORY_H_
#define JUBAL_PARALLEL_SHARED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace jubal {

/// Memory that each member of a group has brought and all others read.
struct SharedMemory {
  std::shared_ptr<std::byte> mine{};                        // null when it did not work
  std::vector<std::shared_ptr<const std::byte>> of_rank{};  // mine and the others', by rank
  std::string failure{};  // when it did not work: which rank failed at what, and why
};

/// This rank brings `bytes` ≥ 0 of zeroed memory at a page boundary. The memory has no name and is
/// no part of /dev/shm: it goes with the last process that maps it, however that ends. Collective,
/// on ranks of one host; succeeds or fails on all members alike. It fails when the system gives no
/// memory, or when the members do not see each other in /proc, as in containers of their own.
SharedMemory ShareMemory(Communicator& group, std::int64_t bytes);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_SHARED_MEMORY_H_

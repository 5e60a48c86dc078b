#ifndef JUBAL_PARALLEL_SHARED_MEMORY_COMMUNICATOR_H_
#define JUBAL_PARALLEL_SHARED_MEMORY_COMMUNICATOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace jubal {

/// What a communicator over shared memory asks of its surroundings. Either may be empty.
struct SharedMemoryHooks {
  /// Called again and again by a rank that waits, so that what the communicator underneath still
  /// has to deliver goes out.
  std::function<void()> while_waiting{};
  /// Told, on one rank, why ranks of a host that should share memory do not.
  std::function<void(const std::string& failure)> on_failure{};
};

/// `world` with a short cut: in groups whose ranks are on one host, rows go through memory that
/// these ranks share. What is left goes through `world` and the groups split from it: groups across
/// hosts, Broadcast, Barrier, and hosts where sharing does not work. Collective.
///
/// Rows of NewArena are read by their receivers where they lie; others pass through a segment that
/// each rank brings to each group, in as many rounds as it takes. A rank that waits for rows spins
/// for some microseconds, then yields its core between looks. It does so for ever: whoever started
/// the ranks must end them all when one dies.
std::unique_ptr<Communicator> OverSharedMemory(std::unique_ptr<Communicator> world,
                                               SharedMemoryHooks hooks);

/// Bytes of the segment that each rank brings to a group of `size` ranks.
std::int64_t SegmentBytes(int size);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_SHARED_MEMORY_COMMUNICATOR_H_

#ifndef JUBAL_TESTS_PARALLEL_COMMUNICATOR_CONFORMANCE_H_
#define JUBAL_TESTS_PARALLEL_COMMUNICATOR_CONFORMANCE_H_

#include <vector>

#include "kernels/stream.h"
#include "parallel/communicator.h"

namespace jubal {

/// One promise of Communicator. Every rank of a world calls `check`, which reports through
/// GoogleTest. Tensors are on the stream's device.
struct ConformanceCheck {
  const char* name;
  void (*check)(Communicator& world, Stream& stream);
};

/// What every implementation is held to, whatever the size of its world.
const std::vector<ConformanceCheck>& ConformanceChecks();

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_COMMUNICATOR_CONFORMANCE_H_

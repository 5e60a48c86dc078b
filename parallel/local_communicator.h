#ifndef JUBAL_PARALLEL_LOCAL_COMMUNICATOR_H_
#define JUBAL_PARALLEL_LOCAL_COMMUNICATOR_H_

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace jubal {

/// A world of `size` ranks that are threads of this process: element r is for the thread that plays
/// rank r. A world of one needs no thread and never waits. When one rank's thread destroys its
/// communicator while others wait for it, they throw CommunicationError.
std::vector<std::unique_ptr<Communicator>> MakeLocalWorld(int size);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_LOCAL_COMMUNICATOR_H_

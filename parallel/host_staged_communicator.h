#ifndef JUBAL_PARALLEL_HOST_STAGED_COMMUNICATOR_H_
#define JUBAL_PARALLEL_HOST_STAGED_COMMUNICATOR_H_

#include <cstdint>
#include <memory>

#include "kernels/gpu.h"
#include "parallel/communicator.h"

namespace jubal {

/// `world` for tensors of a GPU: their rows pass through host memory, and the call returns when
/// they are there. So ranks that share one GPU can work together; it is not fast. What is on the
/// CPU goes through `world` as before, and NewArena is the GPU's memory, this rank's own.
///
/// Rows are carried `buffer_bytes` at a time, and through pinned memory: about twice that in all,
/// for this group and all that are split from it. Every rank passes the same. `gpu` must outlive
/// the groups.
std::unique_ptr<Communicator> OverHostMemory(std::unique_ptr<Communicator> world, Gpu& gpu,
                                             std::int64_t buffer_bytes = std::int64_t{8} << 20);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_HOST_STAGED_COMMUNICATOR_H_

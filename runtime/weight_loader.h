#ifndef JUBAL_RUNTIME_WEIGHT_LOADER_H_
#define JUBAL_RUNTIME_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>

#include "kernels/arena.h"
#include "parallel/mesh.h"
#include "runtime/model.h"
#include "runtime/model_source.h"

namespace jubal {

/// Called as loading goes on: bytes of the checkpoint done, and in all.
using LoadProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Packs this rank's share of every weight into `arena` (PlanMemory's weight_bytes), straight from
/// the mapped files, in the order of the files. The ranks of a node walk through the files
/// together, one tensor at a time, and share the work of reading ahead, so that each byte comes
/// from the disk once per node whatever their number. Collective over the node. Throws UserError
/// (kBadData) for values that are not finite, naming the tensor.
Weights LoadWeights(const ModelSource& source, const Mesh& mesh, Arena& arena,
                    const LoadProgress& progress);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_WEIGHT_LOADER_H_

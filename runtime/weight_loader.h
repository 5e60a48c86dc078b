#ifndef JUBAL_RUNTIME_WEIGHT_LOADER_H_
#define JUBAL_RUNTIME_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <optional>

#include "kernels/arena.h"
#include "parallel/mesh.h"
#include "runtime/checkpoint/stored_tensor.h"
#include "runtime/model.h"
#include "runtime/model_source.h"

namespace jubal {

/// How far loading has come, in bytes of the checkpoint or, of a packed model, of the node's ranks.
struct LoadState {
  std::int64_t done = 0;
  std::int64_t total = 0;
  // In the end, when weights are mapped: bytes that had to be read.
  std::optional<std::int64_t> from_disk = std::nullopt;
};

/// Called as loading goes on, and once when all is done.
using LoadProgress = std::function<void(const LoadState& state)>;

/// Packs this rank's share of every weight into `arena` (PlanMemory's weight_bytes), straight from
/// the mapped files, in the order of the files. The ranks of a node walk through the files
/// together, one tensor at a time, and share the work of reading ahead, so that each byte comes
/// from the disk once per node whatever their number. Collective over the node. Throws UserError
/// (kBadData) for values that are not finite, naming the tensor.
Weights LoadWeights(const ModelSource& source, const Mesh& mesh, Arena& arena,
                    const LoadProgress& progress);

/// A vector as it lies in memory, out [k] f32, from f32 or bf16. Throws like LoadWeights.
void LoadVector(const StoredTensor& tensor, TensorView out);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_WEIGHT_LOADER_H_

#ifndef JUBAL_RUNTIME_WEIGHT_LOADER_H_
#define JUBAL_RUNTIME_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <optional>

#include "kernels/arena.h"
#include "kernels/stream.h"
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

/// Packs this rank's share of every weight into `arena` (PlanMemory's weight_bytes, where `stream`
/// computes), straight from the mapped files, in the order of the files. The ranks of a node walk
/// through the files together, one tensor at a time, and share the work of reading ahead, so that
/// each byte comes from the disk once per node whatever their number. Collective over the node.
/// Throws UserError (kBadData) for values that are not finite, naming the tensor.
Weights LoadWeights(const ModelSource& source, const Mesh& mesh, Arena& arena, Stream& stream,
                    const LoadProgress& progress);

/// What LoadWeights takes on top of the arena, where a GPU packs.
struct LoadingBuffers {
  std::int64_t piece_bytes = 0;  // twice on the GPU, and twice in pinned memory of the host
  std::int64_t flag_bytes = 0;   // on the GPU
};
LoadingBuffers LoadingBuffersOf(const ModelSource& source, const ParallelPlan& plan,
                                const Seat& seat);

/// A vector as it lies in memory, out [k] f32, from f32 or bf16. Throws like LoadWeights.
void LoadVector(const StoredTensor& tensor, TensorView out);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_WEIGHT_LOADER_H_

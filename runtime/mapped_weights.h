#ifndef JUBAL_RUNTIME_MAPPED_WEIGHTS_H_
#define JUBAL_RUNTIME_MAPPED_WEIGHTS_H_

#include "kernels/arena.h"
#include "kernels/gpu.h"
#include "parallel/mesh.h"
#include "runtime/model.h"
#include "runtime/model_source.h"
#include "runtime/weight_loader.h"

namespace jubal {

/// This rank's share of every weight where it lies in a packed model's file: nothing is copied, and
/// a stray write ends the process. Returns when all of it is in the page cache; what was missing
/// has been read with several threads per node, each rank its own part. Collective over the node.
/// Throws UserError (kIoError) when the file cannot be read.
Weights MapWeights(const ModelSource& source, const Mesh& mesh, const LoadProgress& progress);

/// Copies this rank's share of every weight from a packed model's file to a GPU, into `arena`
/// (PlanMemory's weight_bytes), through two pieces of at most kUploadBytes of pinned memory.
/// Collective over the node. Throws UserError (kIoError) when the file cannot be read.
Weights UploadPack(const ModelSource& source, const Mesh& mesh, Arena& arena, Gpu& gpu,
                   const LoadProgress& progress);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MAPPED_WEIGHTS_H_

#ifndef JUBAL_RUNTIME_RANDOM_WEIGHTS_H_
#define JUBAL_RUNTIME_RANDOM_WEIGHTS_H_

#include "kernels/arena.h"
#include "kernels/stream.h"
#include "parallel/mesh.h"
#include "runtime/model.h"
#include "runtime/model_source.h"
#include "runtime/weight_loader.h"

namespace jubal {

/// Fills this rank's share of every weight with random numbers (FillRandom), packed, in place of
/// LoadWeights for a model without files; norms are constant. A weight depends on its place in the
/// whole model alone, so that every plan has the same model. `arena` lies where `stream` computes.
Weights RandomWeights(const ModelSource& source, const Mesh& mesh, Arena& arena, Stream& stream,
                      const LoadProgress& progress);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_RANDOM_WEIGHTS_H_

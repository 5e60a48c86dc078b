#include "runtime/random_weights.h"

#include <vector>

#include "kernels/copy.h"
#include "kernels/fill_random.h"
#include "kernels/run.h"
#include "runtime/memory_plan.h"

namespace jubal {
namespace {

/// Attention over many random keys is nearly a mean, the same for all tokens of a sequence. Scaled
/// up to 1 by the norm behind it, it would send them all to the same experts.
float NormScale(WeightRole role) { return role == WeightRole::kAttentionOutNorm ? 0.25f : 1.0f; }

}  // namespace

Weights RandomWeights(const ModelSource& source, const Mesh& mesh, Arena& arena, Stream& stream,
                      const LoadProgress& progress) {
  Weights weights;
  const std::vector<WeightMemory> memory =
      TakeWeights(source, mesh.plan, mesh.seat, arena, weights);
  std::int64_t total = 0;
  for (const WeightMemory& one : memory) total += one.data.bytes();
  std::int64_t done = 0;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) {
      const std::vector<float> norm(static_cast<std::size_t>(spec.k), NormScale(spec.role));
      Run(Copy{.out = memory[i].data,
               .x = {reinterpret_cast<const std::byte*>(norm.data()), DType::kF32, Shape{spec.k}}},
          stream);
    } else {
      Run(FillRandom{.data = memory[i].data,
                     .scales = memory[i].scales,
                     .layout = MatrixOf(weights, spec).layout,
                     .key = static_cast<std::int64_t>(i)},
          stream);
    }
    stream.Synchronize();
    done += memory[i].data.bytes();
    if (progress) progress({.done = done, .total = total});
  }
  return weights;
}

}  // namespace jubal

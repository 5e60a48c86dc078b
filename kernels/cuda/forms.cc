#include "kernels/cuda/forms.h"

#include "kernels/cuda/gpu_limits.h"
#include "kernels/gpu_limits.h"
#include "kernels/run.h"

namespace jubal {
namespace {

template <class... Ops>
void Install() {
  ((gpu_form<Ops> = [](const Ops& op, Stream& stream) { RunOnGpu(op, stream); }), ...);
}

}  // namespace

void InstallGpuForms() {
  Install<Add, CombineExperts, Copy, Embed, FillDrawnTokens, FillRandom, GatedExperts, GatherRows,
          GroupByExpert, LogProb, Matmul, MatmulPartials, Matmuls, PackPairs, PackScales,
          PackWeights, PagedAttention, PlacePairs, RmsNorm, Rope, RouteTopK, Sample, StoreKv,
          SumTree, Zero>();
  gpu_measurements = {.read_bandwidth = MeasureGpuReadBandwidth, .peak = MeasureGpuPeak};
}

}  // namespace jubal

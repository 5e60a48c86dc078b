#ifndef JUBAL_KERNELS_CUDA_FORMS_H_
#define JUBAL_KERNELS_CUDA_FORMS_H_

#include "kernels/add.h"
#include "kernels/combine_experts.h"
#include "kernels/copy.h"
#include "kernels/embed.h"
#include "kernels/fill_drawn_tokens.h"
#include "kernels/fill_random.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"
#include "kernels/pack_weights.h"
#include "kernels/padded_pairs.h"
#include "kernels/paged_attention.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/route_top_k.h"
#include "kernels/sample.h"
#include "kernels/stream.h"
#include "kernels/sum_tree.h"

namespace jubal {

// The GPU form of each operation: enqueues it. Operands lie on the GPU but where the operation says
// otherwise.
void RunOnGpu(const Add& op, Stream& stream);
void RunOnGpu(const CombineExperts& op, Stream& stream);
void RunOnGpu(const Copy& op, Stream& stream);
void RunOnGpu(const Embed& op, Stream& stream);
void RunOnGpu(const FillDrawnTokens& op, Stream& stream);
void RunOnGpu(const FillRandom& op, Stream& stream);
void RunOnGpu(const GatedExperts& op, Stream& stream);
void RunOnGpu(const GatherRows& op, Stream& stream);
void RunOnGpu(const GroupByExpert& op, Stream& stream);
void RunOnGpu(const LogProb& op, Stream& stream);
void RunOnGpu(const Matmul& op, Stream& stream);
void RunOnGpu(const MatmulPartials& op, Stream& stream);
void RunOnGpu(const Matmuls& op, Stream& stream);
void RunOnGpu(const PackPairs& op, Stream& stream);
void RunOnGpu(const PackScales& op, Stream& stream);
void RunOnGpu(const PackWeights& op, Stream& stream);
void RunOnGpu(const PagedAttention& op, Stream& stream);
void RunOnGpu(const PlacePairs& op, Stream& stream);
void RunOnGpu(const RmsNorm& op, Stream& stream);
void RunOnGpu(const Rope& op, Stream& stream);
void RunOnGpu(const RouteTopK& op, Stream& stream);
void RunOnGpu(const Sample& op, Stream& stream);
void RunOnGpu(const StoreKv& op, Stream& stream);
void RunOnGpu(const SumTree& op, Stream& stream);
void RunOnGpu(const Zero& op, Stream& stream);

/// From now on Run() finds them. Called when a GPU is opened.
void InstallGpuForms();

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_FORMS_H_

#include "kernels/route_top_k.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/float_math.h"

namespace jubal {
namespace {

constexpr int kTokens = 4;  // of one block: a warp each

struct Candidate {
  float logit;
  int expert;  // −1: none
};

__device__ bool IsNumber(float value) { return value == value; }

/// The order of experts, as kernels/route_top_k.cc has it.
__device__ bool Before(Candidate a, Candidate b) {
  if (a.logit > b.logit) return true;
  if (a.logit < b.logit) return false;
  if (IsNumber(a.logit) != IsNumber(b.logit)) return IsNumber(a.logit);
  return a.expert < b.expert;
}

/// The first expert of all that come after `previous`, in every lane.
__device__ Candidate Next(const float* logits, int experts, Candidate previous) {
  Candidate best{0.0f, -1};
  for (int e = static_cast<int>(threadIdx.x) % kWarp; e < experts; e += kWarp) {
    const Candidate candidate{logits[e], e};
    const bool after = previous.expert < 0 || Before(previous, candidate);
    if (after && (best.expert < 0 || Before(candidate, best))) best = candidate;
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const Candidate other{__shfl_xor_sync(kFullWarp, best.logit, lanes),
                          __shfl_xor_sync(kFullWarp, best.expert, lanes)};
    if (other.expert >= 0 && (best.expert < 0 || Before(other, best))) best = other;
  }
  return best;
}

__global__ void __launch_bounds__(kTokens* kWarp)
    Route(std::int32_t* ids, std::int64_t ids_stride, float* weights, std::int64_t weights_stride,
          const float* logits, std::int64_t logits_stride, std::int64_t tokens, int experts,
          int top_k, bool renormalize) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kTokens + threadIdx.x / kWarp;
  if (t >= tokens) return;
  ids += t * ids_stride;
  weights += t * weights_stride;
  logits += t * logits_stride;
  Candidate previous{0.0f, -1};
  float largest = 0.0f;
  double total = 0.0;
  for (int j = 0; j < top_k; ++j) {
    previous = Next(logits, experts, previous);
    if (j == 0) largest = previous.logit;
    const float weight = FastExp(previous.logit - largest);
    total += weight;
    if (lane == 0) {
      ids[j] = previous.expert;
      weights[j] = weight;
    }
  }
  if (!renormalize) {
    total = 0.0;
    for (int begin = 0; begin < experts; begin += kWarp) {
      const float mine = begin + lane < experts ? FastExp(logits[begin + lane] - largest) : 0.0f;
      // In ascending order, every lane the whole sum.
      for (int i = 0; i < min(kWarp, experts - begin); ++i) {
        total += __shfl_sync(kFullWarp, mine, i);
      }
    }
  }
  if (lane != 0) return;
  for (int j = 0; j < top_k; ++j) weights[j] = static_cast<float>(weights[j] / total);
}

}  // namespace

void RunOnGpu(const RouteTopK& op, Stream& stream) {
  const std::int64_t tokens = op.logits.size(0);
  Launch(stream, Route, Extent(DivideUp(tokens, kTokens)), kTokens * kWarp, 0,
         DeviceData<std::int32_t>(op.topk_ids), op.topk_ids.row_stride(),
         DeviceData<float>(op.topk_weights), op.topk_weights.row_stride(),
         DeviceData<float>(op.logits), op.logits.row_stride(), tokens,
         static_cast<int>(op.logits.size(1)), static_cast<int>(op.topk_ids.size(1)),
         op.renormalize);
}

}  // namespace jubal

#include "kernels/route_top_k.h"

#include <cmath>

#include "kernels/float_math.h"

namespace jubal {
namespace {

/// The order of experts: logit descending, what is not a number last, id ascending. Ordering logits
/// orders their probabilities, and keeps apart those that round to the same one.
bool Before(const float* logits, std::int32_t a, std::int32_t b) {
  if (logits[a] > logits[b]) return true;
  if (logits[a] < logits[b]) return false;
  const bool a_is_number = !std::isnan(logits[a]);
  if (a_is_number == std::isnan(logits[b])) return a_is_number;
  return a < b;
}

/// The first expert that comes after `previous`; −1 asks for the first of all.
std::int32_t Next(const float* logits, std::int64_t experts, std::int32_t previous) {
  std::int32_t best = -1;
  for (std::int32_t e = 0; e < experts; ++e) {
    const bool after = previous < 0 || Before(logits, previous, e);
    if (after && (best < 0 || Before(logits, e, best))) best = e;
  }
  CHECK_GE(best, 0);
  return best;
}

}  // namespace

void Check(const RouteTopK& op) {
  CHECK(op.topk_ids.dtype() == DType::kI32 && op.topk_weights.dtype() == DType::kF32);
  CHECK(op.logits.dtype() == DType::kF32);
  CHECK(op.topk_ids.rank() == 2 && op.logits.rank() == 2);
  CHECK(op.topk_weights.shape() == op.topk_ids.shape());
  CHECK_EQ(op.topk_ids.size(0), op.logits.size(0));
  CHECK_LE(op.topk_ids.size(1), op.logits.size(1));
}

void RunOnCpu(const RouteTopK& op) {
  const std::int64_t experts = op.logits.size(1);
  const std::int64_t top_k = op.topk_ids.size(1);
  for (std::int64_t t = 0; t < op.logits.size(0); ++t) {
    const float* logits = op.logits.row<float>(t);
    std::int32_t* ids = op.topk_ids.row<std::int32_t>(t);
    float* weights = op.topk_weights.row<float>(t);
    std::int32_t previous = -1;
    double picked = 0.0;
    for (std::int64_t j = 0; j < top_k; ++j) {
      previous = ids[j] = Next(logits, experts, previous);
      weights[j] = FastExp(logits[ids[j]] - logits[ids[0]]);
      picked += weights[j];
    }
    double total = picked;
    if (!op.renormalize) {
      total = 0.0;
      for (std::int64_t e = 0; e < experts; ++e) total += FastExp(logits[e] - logits[ids[0]]);
    }
    for (std::int64_t j = 0; j < top_k; ++j) {
      weights[j] = static_cast<float>(weights[j] / total);
    }
  }
}

}  // namespace jubal

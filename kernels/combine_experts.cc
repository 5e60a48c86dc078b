#include "kernels/combine_experts.h"

#include <algorithm>
#include <array>

namespace jubal {
namespace {

constexpr std::int64_t kMaxTopK = 64;

}  // namespace

void Check(const CombineExperts& op) {
  CHECK(op.out.dtype() == DType::kF32 && op.y.dtype() == DType::kF32);
  CHECK(op.row_of.dtype() == DType::kI32 && op.topk_ids.dtype() == DType::kI32);
  CHECK(op.topk_weights.dtype() == DType::kF32);
  CHECK(op.out.rank() == 2 && op.y.rank() == 2 && op.row_of.rank() == 2);
  CHECK_EQ(op.out.size(1), op.y.size(1));
  CHECK_EQ(op.row_of.size(0), op.out.size(0));
  CHECK(op.row_of.size(1) >= 1 && op.row_of.size(1) <= kMaxTopK);
  CHECK(op.topk_ids.shape() == op.row_of.shape());
  CHECK(op.topk_weights.shape() == op.row_of.shape());
}

void RunOnCpu(const CombineExperts& op) {
  const std::int64_t tokens = op.out.size(0);
  const std::int64_t hidden = op.out.size(1);
  const std::int64_t top_k = op.row_of.size(1);
#pragma omp parallel for if (tokens > 4)
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t* rows = op.row_of.row<std::int32_t>(t);
    const std::int32_t* ids = op.topk_ids.row<std::int32_t>(t);
    const float* weights = op.topk_weights.row<float>(t);
    std::array<std::int64_t, kMaxTopK> order;
    for (std::int64_t j = 0; j < top_k; ++j) {
      CHECK(rows[j] >= 0 && rows[j] < op.y.size(0));
      order[static_cast<std::size_t>(j)] = j;
    }
    std::sort(order.begin(), order.begin() + top_k,
              [&](std::int64_t a, std::int64_t b) { return ids[a] < ids[b]; });
    float* out = op.out.row<float>(t);
    for (std::int64_t place = 0; place < top_k; ++place) {
      const std::int64_t j = order[static_cast<std::size_t>(place)];
      const float weight = weights[j];
      const float* y = op.y.row<float>(rows[j]);
      if (place == 0) {
        for (std::int64_t i = 0; i < hidden; ++i) out[i] = weight * y[i];
      } else {
        for (std::int64_t i = 0; i < hidden; ++i) out[i] += weight * y[i];
      }
    }
  }
}

}  // namespace jubal

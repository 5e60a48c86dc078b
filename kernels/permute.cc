#include "kernels/permute.h"

#include <algorithm>
#include <cstring>

namespace jubal {

void Check(const GroupByExpert& op) {
  CHECK(op.offsets.dtype() == DType::kI32 && op.row_of.dtype() == DType::kI32);
  CHECK(op.token_of.dtype() == DType::kI32 && op.topk_ids.dtype() == DType::kI32);
  CHECK(op.offsets.dense() && op.token_of.dense());
  CHECK_EQ(op.topk_ids.rank(), 2);
  CHECK(op.offsets.shape() == (Shape{op.experts.size() + 1}));
  CHECK(op.row_of.shape() == op.topk_ids.shape());
  CHECK(op.token_of.shape() == (Shape{op.topk_ids.shape().elements()}));
}

void RunOnCpu(const GroupByExpert& op) {
  const std::int64_t tokens = op.topk_ids.size(0);
  const std::int64_t top_k = op.topk_ids.size(1);
  const std::int64_t experts = op.experts.size();
  std::int32_t* offsets = op.offsets.data<std::int32_t>();
  std::int32_t* token_of = op.token_of.data<std::int32_t>();
  std::fill_n(offsets, experts + 1, 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t* ids = op.topk_ids.row<std::int32_t>(t);
    for (std::int64_t j = 0; j < top_k; ++j) {
      if (ids[j] >= op.experts.begin && ids[j] < op.experts.end) {
        ++offsets[ids[j] - op.experts.begin + 1];
      }
    }
  }
  for (std::int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  // offsets[e] serves as the cursor of expert e, and so ends where expert e + 1 starts.
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t* ids = op.topk_ids.row<std::int32_t>(t);
    std::int32_t* row_of = op.row_of.row<std::int32_t>(t);
    for (std::int64_t j = 0; j < top_k; ++j) {
      row_of[j] = -1;
      if (ids[j] < op.experts.begin || ids[j] >= op.experts.end) continue;
      row_of[j] = offsets[ids[j] - op.experts.begin]++;
      token_of[row_of[j]] = static_cast<std::int32_t>(t);
    }
  }
  for (std::int64_t e = experts - 1; e > 0; --e) offsets[e] = offsets[e - 1];
  if (experts > 0) offsets[0] = 0;
}

void Check(const GatherRows& op) {
  CHECK(op.out.dtype() == op.x.dtype());
  CHECK(op.out.rank() == 2 && op.x.rank() == 2 && op.out.dense());
  CHECK_EQ(op.out.size(1), op.x.size(1));
  CHECK(op.index.dtype() == DType::kI32 && op.index.rank() == 1 && op.index.dense());
  CHECK(op.count.dtype() == DType::kI32 && op.count.shape() == (Shape{1}));
}

void RunOnCpu(const GatherRows& op) {
  const std::int64_t count = *op.count.data<std::int32_t>();
  CHECK(count >= 0 && count <= op.out.size(0) && count <= op.index.size(0));
  const std::int32_t* index = op.index.data<std::int32_t>();
  const std::int64_t size = SizeOf(op.x.dtype());
  const std::int64_t row_bytes = op.x.size(1) * size;
#pragma omp parallel for if (count > 16)
  for (std::int64_t r = 0; r < count; ++r) {
    CHECK(index[r] >= 0 && index[r] < op.x.size(0));
    std::memcpy(op.out.raw() + r * row_bytes, op.x.raw() + index[r] * op.x.row_stride() * size,
                static_cast<std::size_t>(row_bytes));
  }
}

}  // namespace jubal

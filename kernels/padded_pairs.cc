#include "kernels/padded_pairs.h"

#include <algorithm>

#include "kernels/check.h"

namespace jubal {

void Check(const PackPairs& op) {
  CHECK(op.out.dtype() == DType::kF32 && op.x.dtype() == DType::kF32);
  CHECK(op.row_of.dtype() == DType::kI32 && op.row_of.rank() == 2);
  CHECK(op.out.rank() == 2 && op.out.dense() && op.x.rank() == 2 && op.x.dense());
  CHECK_EQ(op.out.size(1), op.x.size(1));
  CHECK(1 <= op.slots && op.slots <= op.row_of.size(1));
  CHECK_EQ(op.out.size(0), op.row_of.size(0) * op.slots);
}

void RunOnCpu(const PackPairs& op) {
  for (std::int64_t t = 0; t < op.row_of.size(0); ++t) {
    const std::int32_t* row_of = op.row_of.row<std::int32_t>(t);
    std::int64_t used = 0;
    for (std::int64_t j = 0; j < op.row_of.size(1); ++j) {
      if (row_of[j] < 0) continue;
      CHECK(row_of[j] < op.x.size(0) && used < op.slots);
      std::copy_n(op.x.row<float>(row_of[j]), op.x.size(1),
                  op.out.row<float>(t * op.slots + used++));
    }
  }
}

void Check(const PlacePairs& op) {
  CHECK(op.row_of.dtype() == DType::kI32 && op.topk_ids.dtype() == DType::kI32);
  CHECK_EQ(op.row_of.rank(), 2);
  CHECK(op.topk_ids.shape() == op.row_of.shape());
  CHECK(1 <= op.groups && op.groups <= op.experts);
  CHECK_GE(op.slots, 1);
}

void RunOnCpu(const PlacePairs& op) {
  const std::int64_t tokens = op.topk_ids.size(0);
  // The last group that begins at or before the expert.
  const auto group_of = [&](std::int64_t expert) {
    return ((expert + 1) * op.groups - 1) / op.experts;
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t* ids = op.topk_ids.row<std::int32_t>(t);
    std::int32_t* row_of = op.row_of.row<std::int32_t>(t);
    for (std::int64_t j = 0; j < op.topk_ids.size(1); ++j) {
      CHECK(0 <= ids[j] && ids[j] < op.experts);
      const std::int64_t group = group_of(ids[j]);
      const auto before =
          std::count_if(ids, ids + j, [&](std::int32_t id) { return group_of(id) == group; });
      row_of[j] = static_cast<std::int32_t>((group * tokens + t) * op.slots + before);
    }
  }
}

}  // namespace jubal

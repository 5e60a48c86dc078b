#include "kernels/fill_drawn_tokens.h"

namespace jubal {

void Check(const FillDrawnTokens& op) {
  CHECK(op.token_ids.dtype() == DType::kI32 && op.drawn.dtype() == DType::kI32);
  CHECK(op.token_ids.rank() == 1 && op.token_ids.dense());
  CHECK(op.drawn.rank() == 1 && op.drawn.dense());
}

void RunOnCpu(const FillDrawnTokens& op) {
  auto* ids = op.token_ids.data<std::int32_t>();
  for (std::int64_t t = 0; t < op.token_ids.size(0); ++t) {
    if (ids[t] >= 0) continue;
    const std::int64_t draw = -1 - std::int64_t{ids[t]};
    CHECK_LT(draw, op.drawn.size(0));
    ids[t] = op.drawn.data<std::int32_t>()[draw];
  }
}

}  // namespace jubal

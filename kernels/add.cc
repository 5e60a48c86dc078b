#include "kernels/add.h"

namespace jubal {

void Check(const Add& op) {
  CHECK(op.into.dtype() == DType::kF32 && op.x.dtype() == DType::kF32);
  CHECK_EQ(op.into.rank(), 2);
  CHECK(op.into.shape() == op.x.shape());
}

void RunOnCpu(const Add& op) {
  const std::int64_t tokens = op.into.size(0);
  const std::int64_t hidden = op.into.size(1);
#pragma omp parallel for if (tokens > 8)
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* into = op.into.row<float>(t);
    const float* x = op.x.row<float>(t);
    for (std::int64_t i = 0; i < hidden; ++i) into[i] += x[i];
  }
}

}  // namespace jubal

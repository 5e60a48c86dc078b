#include "kernels/copy.h"

#include <cstring>

#include "kernels/check.h"

namespace jubal {

void Check(const Copy& op) {
  CHECK(op.out.shape() == op.x.shape());
  CHECK(op.out.dtype() == op.x.dtype());
}

void RunOnCpu(const Copy& op) {
  const std::int64_t rows = op.out.size(0);
  if (op.out.bytes() == 0) return;
  const std::int64_t row_bytes = op.out.bytes() / rows;
  const std::int64_t size = SizeOf(op.out.dtype());
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(op.out.raw() + r * op.out.row_stride() * size,
                op.x.raw() + r * op.x.row_stride() * size, static_cast<std::size_t>(row_bytes));
  }
}

void Check(const Zero& op) { CHECK(op.out.dense()); }

void RunOnCpu(const Zero& op) {
  if (op.out.bytes() > 0) std::memset(op.out.raw(), 0, static_cast<std::size_t>(op.out.bytes()));
}

}  // namespace jubal

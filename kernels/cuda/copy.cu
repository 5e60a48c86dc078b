#include "kernels/copy.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {

void RunOnGpu(const Copy& op, Stream& stream) {
  if (op.x.shape().elements() == 0) return;
  const std::int64_t element = SizeOf(op.x.dtype());
  const std::int64_t rows = op.x.size(0);
  stream.queue().Copy(op.out.raw(), op.out.row_stride() * element, op.x.raw(),
                      op.x.row_stride() * element, op.x.bytes() / rows, rows);
}

void RunOnGpu(const Zero& op, Stream& stream) {
  if (op.out.bytes() > 0) stream.queue().Fill(op.out.raw(), 0, op.out.bytes());
}

}  // namespace jubal

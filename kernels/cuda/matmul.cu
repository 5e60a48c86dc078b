#include "kernels/matmul.h"

#include "kernels/cuda/forms.h"
#include "kernels/cuda/products.h"

namespace jubal {
namespace {

void RunMatmuls(std::span<const Matmul> ops, Stream& stream) {
  const Matmul& first = ops.front();
  if (first.x.size(0) == 0) return;
  Products products{.type = first.weight.layout.type,
                    .count = static_cast<std::int32_t>(ops.size()),
                    .x = EnqueueRows(first.x, first.weight, first.workspace.raw(), nullptr, stream),
                    .rows = static_cast<std::int32_t>(Extent(first.x.size(0))),
                    .result = Result::kWhole};
  for (std::size_t i = 0; i < ops.size(); ++i) {
    products.matrices[i] = MatrixOnGpu(ops[i].weight);
    products.out[i] = DeviceData<float>(ops[i].out);
    products.out_stride[i] = ops[i].out.row_stride();
    products.multipliers[i] = ops[i].multiplier;
  }
  EnqueueProducts(products, stream);
}

}  // namespace

void RunOnGpu(const Matmul& op, Stream& stream) { RunMatmuls({&op, 1}, stream); }

void RunOnGpu(const Matmuls& op, Stream& stream) { RunMatmuls(op.products, stream); }

void RunOnGpu(const MatmulPartials& op, Stream& stream) {
  std::byte* const workspace = op.workspace.raw();
  const RowsOnGpu x = EnqueueRows(op.x, op.weight, workspace, nullptr, stream);
  EnqueuePartials(op.out, op.weight, x, nullptr, workspace, stream);
}

}  // namespace jubal

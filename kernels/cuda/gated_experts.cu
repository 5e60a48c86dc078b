#include "kernels/gated_experts.h"

#include "kernels/cuda/forms.h"
#include "kernels/cuda/products.h"

namespace jubal {

// Grids are for as many rows as there may be: what the offsets say, only the kernels know.
void RunOnGpu(const GatedExperts& op, Stream& stream) {
  const std::int64_t rows = op.x.size(0);
  if (rows == 0) return;
  const std::int64_t experts = op.gate.layout.num_experts();
  const std::int32_t* const offsets = DeviceData<std::int32_t>(op.offsets);
  const std::int32_t* const last = offsets + experts;
  std::byte* const workspace = op.workspace.raw();
  std::byte* const down_workspace = workspace + GpuProductWorkspace(op.gate.layout, rows).bytes;

  Products products{.type = op.gate.layout.type,
                    .count = 2,
                    .x = EnqueueRows(op.x, op.gate, workspace, last, stream),
                    .rows = static_cast<std::int32_t>(Extent(rows)),
                    .experts = static_cast<std::int32_t>(Extent(experts)),
                    .offsets = offsets,
                    .result = Result::kGated,
                    .activation = op.activation};
  products.matrices[0] = MatrixOnGpu(op.gate);
  products.matrices[1] = MatrixOnGpu(op.up);
  products.out[0] = DeviceData<float>(op.hidden);
  products.out_stride[0] = op.hidden.row_stride();
  EnqueueProducts(products, stream);

  const RowsOnGpu hidden = EnqueueRows(op.hidden, op.down, down_workspace, last, stream);
  EnqueuePartials(op.out, op.down, hidden, offsets, down_workspace, stream);
}

}  // namespace jubal

#include "kernels/gated_experts.h"

#include <algorithm>

#include "kernels/block_product.h"
#include "kernels/check.h"
#include "kernels/matmul.h"
#include "kernels/task_ranges.h"
#include "kernels/threads.h"

namespace jubal {
namespace {

/// The blocks of all experts that have rows, one after the other.
class ExpertTasks {
 public:
  ExpertTasks(const std::int32_t* offsets, std::int64_t experts, std::int64_t blocks)
      : offsets_(offsets), blocks_(blocks) {
    for (std::int64_t e = 0; e < experts; ++e) busy_ += !Rows(e).empty();
  }

  std::int64_t count() const { return busy_ * blocks_; }
  Range Rows(std::int64_t expert) const { return {offsets_[expert], offsets_[expert + 1]}; }

  struct Task {
    std::int64_t expert = -1;
    std::int64_t block = 0;
  };
  Task At(std::int64_t index) const {
    Task task{.expert = -1, .block = index % blocks_};
    for (std::int64_t busy = index / blocks_; busy >= 0; --busy) {
      do ++task.expert;
      while (Rows(task.expert).empty());
    }
    return task;
  }
  /// The task after it, or itself if it is the last.
  Task After(std::int64_t index) const { return At(std::min(index + 1, count() - 1)); }

 private:
  const std::int32_t* offsets_;
  std::int64_t blocks_;
  std::int64_t busy_ = 0;
};

}  // namespace

std::int64_t GatedExpertsWorkspaceBytes(const MatrixLayout& gate, const MatrixLayout& down,
                                        std::int64_t rows, Device device) {
  return MatmulWorkspaceBytes(gate, rows, device) + MatmulWorkspaceBytes(down, rows, device);
}

void Check(const GatedExperts& op) {
  const MatrixLayout& gate = op.gate.layout;
  const MatrixLayout& down = op.down.layout;
  const Device device = op.x.device();
  CheckWeight(op.gate, Split::kByOutput, device);
  CheckWeight(op.up, Split::kByOutput, device);
  CheckWeight(op.down, Split::kByInput, device);
  CHECK(op.up.layout == gate);
  CHECK(down.experts == gate.experts);
  CHECK_EQ(down.k, gate.n);
  CHECK(down.InputRows() == gate.columns || gate.columns.empty());
  CheckFloats(op.x, 2, device);
  const std::int64_t rows = op.x.size(0);
  CHECK_EQ(op.x.size(1), gate.k);
  CheckFloats(op.hidden, 2, device);
  CHECK(op.hidden.shape() == (Shape{rows, gate.columns.size()}));
  CheckFloats(op.out, 3, device);
  CHECK(op.out.dense());
  CHECK(op.out.shape() ==
        (Shape{static_cast<std::int64_t>(MaximalSubtrees(down.chunks).size()), rows, down.n}));
  CHECK(!Overlap(op.out, op.x) && !Overlap(op.out, op.hidden) && !Overlap(op.hidden, op.x));
  CheckWorkspace(op.workspace, GatedExpertsWorkspaceBytes(gate, down, rows, device), device);
  CHECK(!Overlap(op.workspace, op.x) && !Overlap(op.workspace, op.out) &&
        !Overlap(op.workspace, op.hidden));
  CHECK(op.offsets.dtype() == DType::kI32);
  CHECK(op.offsets.device() == device);
  CHECK(op.offsets.shape() == (Shape{gate.num_experts() + 1}));
  if (device != Device::kCpu) return;
  const std::int32_t* offsets = op.offsets.data<std::int32_t>();
  CHECK_EQ(offsets[0], 0);
  for (std::int64_t e = 0; e < gate.num_experts(); ++e) CHECK_LE(offsets[e], offsets[e + 1]);
  CHECK_LE(offsets[gate.num_experts()], rows);
}

// One region of threads: x becomes integers; gate and up of one block are one task; hidden becomes
// integers; down.
void RunOnCpu(const GatedExperts& op) {
  const MatrixLayout& gate_layout = op.gate.layout;
  const MatrixLayout& down_layout = op.down.layout;
  const std::int32_t* offsets = op.offsets.data<std::int32_t>();
  const std::int64_t experts = gate_layout.num_experts();
  const std::int64_t rows = offsets[experts];
  std::byte* const workspace = op.workspace.raw();
  const QuantisedRows x(gate_layout, workspace, op.x.size(0));
  const QuantisedRows hidden(
      down_layout, workspace + QuantisedRows::Bytes(gate_layout, op.x.size(0)), op.x.size(0));
  const BlockProduct gate(op.gate, op.x, x);
  const BlockProduct up(op.up, op.x, x);
  const BlockProduct down(op.down, op.hidden, hidden);
  const ExpertTasks hidden_tasks(offsets, experts, gate.blocks());
  const ExpertTasks down_tasks(offsets, experts, down.blocks());
  if (rows == 0) return;
  TaskRanges hidden_ranges(hidden_tasks.count(), MostThreads());
  TaskRanges down_ranges(down_tasks.count(), MostThreads());

#pragma omp parallel
  {
    BlockSums sums;
    alignas(64) float gated[kPanelRows * kBlockColumns];
    std::int64_t index = 0;
    x.QuantiseAll(op.x, rows);
    while (hidden_ranges.Take(ThisThread(), index)) {
      const auto [expert, block] = hidden_tasks.At(index);
      const auto [next_expert, next_block] = hidden_tasks.After(index);
      const Range own = hidden_tasks.Rows(expert);
      const std::int64_t panels = PanelsOf(own);
      for (std::int64_t p = 0; p < panels; ++p) {
        const RowRange panel = PanelOf(own, p, panels);
        if (panel.count <= 0) break;
        gate.Sum(expert, block, panel, up.Weights(expert, block), sums);
        const std::int64_t count = panel.count * kBlockColumns;
        std::copy(sums.values[0], sums.values[0] + count, gated);
        up.Sum(expert, block, panel, gate.Weights(next_expert, next_block), sums);
        ApplyGatedActivation(op.activation, gated, sums.values[0], count, gated);
        gate.Store(block, panel, gated, 1.0f, op.hidden.data<float>(), op.hidden.row_stride());
      }
    }
#pragma omp barrier
    hidden.QuantiseAll(op.hidden, rows);
    while (down_ranges.Take(ThisThread(), index)) {
      const auto [expert, block] = down_tasks.At(index);
      const auto [next_expert, next_block] = down_tasks.After(index);
      const Range own = down_tasks.Rows(expert);
      const std::int64_t panels = PanelsOf(own);
      for (std::int64_t p = 0; p < panels; ++p) {
        const RowRange panel = PanelOf(own, p, panels);
        if (panel.count <= 0) break;
        down.Sum(expert, block, panel, down.Weights(next_expert, next_block), sums);
        for (int plane = 0; plane < sums.planes; ++plane) {
          down.Store(block, panel, sums.values[plane], 1.0f, op.out.row<float>(plane),
                     down_layout.n);
        }
      }
    }
  }
}

}  // namespace jubal

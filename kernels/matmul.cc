#include "kernels/matmul.h"

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/block_product.h"
#include "kernels/check.h"
#include "kernels/task_ranges.h"

namespace jubal {
namespace {

// Tasks that a product is cut into at least, where rows allow it: enough for threads to share.
constexpr std::int64_t kFewestTasks = 128;

/// How all rows are shared out: a task is one block and some of the panels.
struct Sharing {
  Sharing(std::int64_t rows, std::int64_t blocks)
      : all{0, rows},
        panels(PanelsOf(all)),
        shares(std::clamp<std::int64_t>(
            (kFewestTasks + blocks - 1) / std::max<std::int64_t>(blocks, 1), 1,
            std::max<std::int64_t>(panels, 1))) {}

  template <class Visit>
  void ForEachPanel(std::int64_t share, Visit visit) const {
    for (std::int64_t p = panels * share / shares; p < panels * (share + 1) / shares; ++p) {
      const RowRange rows = PanelOf(all, p, panels);
      if (rows.count > 0) visit(rows);
    }
  }

  Range all;
  std::int64_t panels;
  std::int64_t shares;
};

void RunProducts(std::span<const Matmul> ops) {
  const ConstTensorView x = ops.front().x;
  const MatrixLayout& layout = ops.front().weight.layout;
  const QuantisedRows quantised(layout, ops.front().workspace.raw(), x.size(0));
  std::array<std::optional<BlockProduct>, kMostMatmuls> products;
  std::int64_t blocks = 0;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    blocks += products[i].emplace(ops[i].weight, x, quantised).blocks();
  }
  const Sharing sharing(x.size(0), blocks);
  if (x.size(0) == 0 || blocks == 0) return;
  const std::int64_t tasks = blocks * sharing.shares;
  TaskRanges ranges(tasks, MostThreads());

#pragma omp parallel if (tasks > 1)
  {
    quantised.QuantiseAll(x, x.size(0));
    BlockSums sums;
    std::int64_t task = 0;
    while (ranges.Take(ThisThread(), task)) {
      std::int64_t block = task / sharing.shares;
      std::size_t which = 0;
      for (; block >= products[which]->blocks(); ++which) block -= products[which]->blocks();
      const Matmul& op = ops[which];
      const BlockProduct& product = *products[which];
      const std::uint8_t* next = product.Weights(0, std::min(block + 1, product.blocks() - 1));
      sharing.ForEachPanel(task % sharing.shares, [&](RowRange rows) {
        product.Sum(0, block, rows, next, sums);
        product.Store(block, rows, sums.values[0], op.multiplier, op.out.data<float>(),
                      op.out.row_stride());
      });
    }
  }
}

}  // namespace

std::int64_t MatmulWorkspaceBytes(const MatrixLayout& layout, std::int64_t rows) {
  return QuantisedRows::Bytes(layout, rows);
}

void CheckWeight(const PackedMatrix& weight, Split split) {
  const MatrixLayout& layout = weight.layout;
  CHECK(layout.split == split);
  CHECK(weight.device == Device::kCpu);
  CHECK(layout.columns.begin >= 0 && layout.columns.begin <= layout.columns.end);
  CHECK_LE(layout.columns.end, layout.n);
  if (split == Split::kByInput) {
    CHECK(layout.chunks.begin >= 0 && layout.chunks.begin <= layout.chunks.end);
    CHECK_LE(layout.chunks.end, std::int64_t{kChunks});
    CHECK(layout.columns == (Range{0, layout.n}));
  } else {
    CHECK(layout.chunks == (Range{0, 1}));
  }
  CHECK_GE(layout.num_experts(), 1);
  CHECK(!HasScales(layout.type) || layout.group_rows > 0);
  CHECK(layout.type != WeightType::kInt4 || layout.group_rows <= kMaxInt4GroupRows);
  CHECK(layout.WeightBytes() == 0 || !weight.empty());
  CHECK(reinterpret_cast<std::uintptr_t>(weight.data) % 64 == 0);
  CHECK(layout.ScaleBytes() == 0 || weight.scales != nullptr);
}

void Check(const Matmul& op) {
  CheckWeight(op.weight, Split::kByOutput);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
  CheckFloats(op.x, 2);
  CHECK_EQ(op.x.size(1), op.weight.layout.k);
  CheckFloats(op.out, 2);
  CHECK_EQ(op.out.size(0), op.x.size(0));
  CHECK_EQ(op.out.size(1), op.weight.layout.columns.size());
  CHECK(!Overlap(op.out, op.x));
  CheckWorkspace(op.workspace, MatmulWorkspaceBytes(op.weight.layout, op.x.size(0)));
  CHECK(!Overlap(op.workspace, op.x) && !Overlap(op.workspace, op.out));
}

void Check(const Matmuls& op) {
  CHECK(!op.products.empty() && op.products.size() <= kMostMatmuls);
  const Matmul& first = op.products.front();
  for (const Matmul& product : op.products) {
    Check(product);
    CHECK(product.x.raw() == first.x.raw() && product.x.shape() == first.x.shape());
    CHECK_EQ(product.x.row_stride(), first.x.row_stride());
    CHECK(product.workspace.raw() == first.workspace.raw());
    CHECK(product.weight.layout.type == first.weight.layout.type);
    CHECK_EQ(product.weight.layout.group_rows, first.weight.layout.group_rows);
  }
}

void Check(const MatmulPartials& op) {
  CheckWeight(op.weight, Split::kByInput);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
  CheckFloats(op.x, 2);
  CHECK_EQ(op.x.size(1), op.weight.layout.InputRows().size());
  CheckFloats(op.out, 3);
  CHECK(op.out.dense());
  CHECK_EQ(op.out.size(0),
           static_cast<std::int64_t>(MaximalSubtrees(op.weight.layout.chunks).size()));
  CHECK_EQ(op.out.size(1), op.x.size(0));
  CHECK_EQ(op.out.size(2), op.weight.layout.n);
  CHECK(!Overlap(op.out, op.x));
  CheckWorkspace(op.workspace, MatmulWorkspaceBytes(op.weight.layout, op.x.size(0)));
  CHECK(!Overlap(op.workspace, op.x) && !Overlap(op.workspace, op.out));
}

void RunOnCpu(const Matmul& op) { RunProducts({&op, 1}); }

void RunOnCpu(const Matmuls& op) { RunProducts(op.products); }

void RunOnCpu(const MatmulPartials& op) {
  const MatrixLayout& layout = op.weight.layout;
  const QuantisedRows quantised(layout, op.workspace.raw(), op.x.size(0));
  const BlockProduct product(op.weight, op.x, quantised);
  const Sharing sharing(op.x.size(0), product.blocks());
  if (op.x.size(0) == 0 || product.blocks() == 0) return;
  const std::int64_t tasks = product.blocks() * sharing.shares;
  TaskRanges ranges(tasks, MostThreads());

#pragma omp parallel if (tasks > 1)
  {
    quantised.QuantiseAll(op.x, op.x.size(0));
    BlockSums sums;
    std::int64_t task = 0;
    while (ranges.Take(ThisThread(), task)) {
      const std::int64_t block = task / sharing.shares;
      const std::uint8_t* next = product.Weights(0, std::min(block + 1, product.blocks() - 1));
      sharing.ForEachPanel(task % sharing.shares, [&](RowRange rows) {
        product.Sum(0, block, rows, next, sums);
        for (int plane = 0; plane < sums.planes; ++plane) {
          product.Store(block, rows, sums.values[plane], 1.0f, op.out.row<float>(plane), layout.n);
        }
      });
    }
  }
}

}  // namespace jubal

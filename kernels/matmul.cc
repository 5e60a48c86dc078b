#include "kernels/matmul.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/block_product.h"
#include "kernels/check.h"
#include "kernels/gpu_products.h"
#include "kernels/task_ranges.h"
#include "kernels/threads.h"

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

/// All blocks of the products against all rows of x. store(which, block, rows, sums) takes what a
/// panel of rows gives with a block of product number `which`.
template <class Store>
void RunProducts(std::span<const std::optional<BlockProduct>> products,
                 const QuantisedRows& quantised, ConstTensorView x, const Store& store) {
  std::int64_t blocks = 0;
  for (const std::optional<BlockProduct>& product : products) blocks += product->blocks();
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
      const BlockProduct& product = *products[which];
      const std::uint8_t* next = product.Weights(0, std::min(block + 1, product.blocks() - 1));
      sharing.ForEachPanel(task % sharing.shares, [&](RowRange rows) {
        product.Sum(0, block, rows, next, sums);
        store(which, block, rows, sums);
      });
    }
  }
}

void RunMatmuls(std::span<const Matmul> ops) {
  const ConstTensorView x = ops.front().x;
  const QuantisedRows quantised(ops.front().weight.layout, ops.front().workspace.raw(), x.size(0));
  std::array<std::optional<BlockProduct>, kMostMatmuls> products;
  for (std::size_t i = 0; i < ops.size(); ++i) products[i].emplace(ops[i].weight, x, quantised);
  RunProducts(std::span(products).first(ops.size()), quantised, x,
              [&](std::size_t which, std::int64_t block, RowRange rows, const BlockSums& sums) {
                const Matmul& op = ops[which];
                products[which]->Store(block, rows, sums.values[0], op.multiplier,
                                       op.out.data<float>(), op.out.row_stride());
              });
}

}  // namespace

std::int64_t MatmulWorkspaceBytes(const MatrixLayout& layout, std::int64_t rows, Device device) {
  return device == Device::kCuda ? GpuProductWorkspace(layout, rows).bytes
                                 : QuantisedRows::Bytes(layout, rows);
}

void CheckWeight(const PackedMatrix& weight, Split split, Device device) {
  const MatrixLayout& layout = weight.layout;
  CHECK(layout.split == split);
  CHECK(weight.device == device);
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
  const Device device = op.x.device();
  CheckWeight(op.weight, Split::kByOutput, device);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
  CheckFloats(op.x, 2, device);
  CHECK_EQ(op.x.size(1), op.weight.layout.k);
  CheckFloats(op.out, 2, device);
  CHECK_EQ(op.out.size(0), op.x.size(0));
  CHECK_EQ(op.out.size(1), op.weight.layout.columns.size());
  CHECK(!Overlap(op.out, op.x));
  CheckWorkspace(op.workspace, MatmulWorkspaceBytes(op.weight.layout, op.x.size(0), device),
                 device);
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
  const Device device = op.x.device();
  CheckWeight(op.weight, Split::kByInput, device);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
  CheckFloats(op.x, 2, device);
  CHECK_EQ(op.x.size(1), op.weight.layout.InputRows().size());
  CheckFloats(op.out, 3, device);
  CHECK(op.out.dense());
  CHECK_EQ(op.out.size(0),
           static_cast<std::int64_t>(MaximalSubtrees(op.weight.layout.chunks).size()));
  CHECK_EQ(op.out.size(1), op.x.size(0));
  CHECK_EQ(op.out.size(2), op.weight.layout.n);
  CHECK(!Overlap(op.out, op.x));
  CheckWorkspace(op.workspace, MatmulWorkspaceBytes(op.weight.layout, op.x.size(0), device),
                 device);
  CHECK(!Overlap(op.workspace, op.x) && !Overlap(op.workspace, op.out));
}

void RunOnCpu(const Matmul& op) { RunMatmuls({&op, 1}); }

void RunOnCpu(const Matmuls& op) { RunMatmuls(op.products); }

void RunOnCpu(const MatmulPartials& op) {
  const QuantisedRows quantised(op.weight.layout, op.workspace.raw(), op.x.size(0));
  const std::optional<BlockProduct> product(std::in_place, op.weight, op.x, quantised);
  RunProducts({&product, 1}, quantised, op.x,
              [&](std::size_t, std::int64_t block, RowRange rows, const BlockSums& sums) {
                for (int plane = 0; plane < sums.planes; ++plane) {
                  product->Store(block, rows, sums.values[plane], 1.0f, op.out.row<float>(plane),
                                 op.weight.layout.n);
                }
              });
}

}  // namespace jubal

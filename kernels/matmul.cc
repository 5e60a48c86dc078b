#include "kernels/matmul.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu_isa.h"
#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kStepBytes = kBlockColumns * 4;
constexpr std::int64_t kWorkspaceAlignment = 64;
// Tasks that a product is cut into at least, where rows allow it: enough for threads to share.
constexpr std::int64_t kFewestTasks = 128;
// Chunks 1 … 7 keep the most partial sums open: {1} {2,3} {4,5} {6} {7}.
constexpr int kOpenSubtrees = 5;

std::int64_t DivideUp(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t Aligned(std::int64_t bytes) {
  return DivideUp(bytes, kWorkspaceAlignment) * kWorkspaceAlignment;
}

const MatmulTiles& ActiveTiles() {
  switch (ActiveCpuIsa()) {
    case CpuIsa::kPortable:
      break;
    case CpuIsa::kAvx2:
#if defined(__x86_64__)
      return kAvx2MatmulTiles;
#else
      break;
#endif
  }
  return kPortableMatmulTiles;
}

/// What the four operations have in common.
struct Product {
  const PackedMatrix& weight;
  ConstTensorView x;
  const std::int32_t* offsets = nullptr;  // [local experts + 1]; null: expert 0 meets all rows
  float* out = nullptr;                   // [plane][row][owned columns]
  std::int64_t out_plane_stride = 0;      // elements
  std::int64_t out_row_stride = 0;
  float multiplier = 1.0f;
  std::byte* workspace = nullptr;
};

/// Where one chunk lies in an expert's data and in a row of x.
struct ChunkPlace {
  std::int64_t chunk = 0;  // global number
  std::int64_t groups = 0;
  std::int64_t data = 0;  // bytes, of its first block
  std::int64_t block_bytes = 0;
  std::int64_t scales = 0;      // floats, of its first group
  std::int64_t x = 0;           // elements of a row of x
  std::int64_t first_step = 0;  // of a row of quantised x
  std::int64_t first_run = 0;   // a run is a panel's k: 512 at most, of one group
};

struct Places {
  std::array<ChunkPlace, kChunks> chunks;
  std::int64_t steps = 0;  // of all chunks
  std::int64_t runs = 0;

  explicit Places(const MatrixLayout& layout) {
    const std::int64_t blocks = layout.blocks().size();
    std::int64_t data = 0;
    std::int64_t scales = 0;
    for (std::int64_t i = 0; i < layout.num_chunks(); ++i) {
      const std::int64_t chunk = layout.chunks.begin + i;
      const std::int64_t groups = layout.ChunkGroups(chunk);
      chunks[static_cast<std::size_t>(i)] = {
          .chunk = chunk,
          .groups = groups,
          .data = data,
          .block_bytes = layout.BlockBytes(chunk),
          .scales = scales,
          .x = layout.ChunkRows(chunk).begin - layout.InputRows().begin,
          .first_step = steps,
          .first_run = runs};
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t group_steps =
            DivideUp(layout.GroupRows(chunk, group).size(), RowsPerStep(layout.type));
        steps += group_steps;
        runs += DivideUp(group_steps, kPanelSteps);
      }
      data += layout.BlockBytes(chunk) * blocks;
      scales += groups * layout.stored_columns();
    }
  }
};

/// Quantised activations in the workspace, beside int8 weights only.
struct Activations {
  std::int16_t* values = nullptr;       // [rows][steps][4]
  std::int32_t* corrections = nullptr;  // [rows][runs]: 128 · Σa
  float* scales = nullptr;              // [rows][chunks]

  Activations(std::byte* workspace, const Places& places, std::int64_t rows) {
    values = reinterpret_cast<std::int16_t*>(workspace);
    workspace += Aligned(rows * places.steps * 8);
    corrections = reinterpret_cast<std::int32_t*>(workspace);
    workspace += Aligned(rows * places.runs * 4);
    scales = reinterpret_cast<float*>(workspace);
  }
};

void QuantiseRow(const Product& product, const Places& places, const MatmulTiles& tiles,
                 std::int64_t row, const Activations& activations) {
  const MatrixLayout& layout = product.weight.layout;
  const float* x = product.x.row<float>(row);
  std::int16_t* values = activations.values + row * places.steps * 4;
  std::int32_t* corrections = activations.corrections + row * places.runs;
  for (std::int64_t i = 0; i < layout.num_chunks(); ++i) {
    const std::int64_t chunk = layout.chunks.begin + i;
    const std::uint32_t largest = tiles.largest_magnitude(x, layout.ChunkRows(chunk).size());
    const bool finite =
        largest < std::bit_cast<std::uint32_t>(std::numeric_limits<float>::infinity());
    const float scale = finite ? std::bit_cast<float>(largest) / kLargestActivation
                               : std::numeric_limits<float>::quiet_NaN();
    activations.scales[row * layout.num_chunks() + i] = scale;
    for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
      const std::int64_t rows = layout.GroupRows(chunk, group).size();
      for (std::int64_t begin = 0; begin < rows; begin += kPanelSteps * 4) {
        const std::int64_t count = std::min(rows - begin, kPanelSteps * 4);
        const std::int64_t padded = DivideUp(count, 4) * 4;
        if (scale > 0) {
          *corrections++ = kInt8Offset * tiles.quantise(x, count, scale, values);
          std::fill(values + count, values + padded, std::int16_t{0});
        } else {
          *corrections++ = 0;
          std::fill(values, values + padded, std::int16_t{0});
        }
        x += count;
        values += padded;
      }
    }
  }
}

/// One 64-column block of one expert against some rows of x.
struct Task {
  std::int64_t expert = 0;  // local
  std::int64_t block = 0;   // of those held
  std::int64_t row = 0;
  std::int64_t rows = 0;  // kPanelRows at most
};

class TaskRunner {
 public:
  TaskRunner(const Product& product, const Places& places, const Activations& activations,
             const MatmulTiles& tiles)
      : product_(product),
        layout_(product.weight.layout),
        places_(places),
        activations_(activations),
        tiles_(tiles),
        expert_bytes_(layout_.ExpertBytes()),
        expert_scales_(layout_.ExpertScales()),
        stored_columns_(layout_.stored_columns()) {}

  void Run(const Task& task) const {
    // The open nodes of the tree over the chunks, each [rows][64]; the last one is being summed.
    alignas(64) float open[kOpenSubtrees][kPanelRows * kBlockColumns];
    const std::int64_t count = task.rows * kBlockColumns;
    int depth = 0;
    for (std::int64_t i = 0; i < layout_.num_chunks(); ++i) {
      float* leaf = open[depth++];
      std::fill(leaf, leaf + count, 0.0f);
      if (layout_.type == WeightType::kInt8) {
        SumInt8Chunk(task, i, leaf);
      } else {
        SumFloatChunk(task, i, leaf);
      }
      const std::int64_t end = layout_.chunks.begin + i + 1;
      for (std::int64_t size = 2; end % size == 0 && end - size >= layout_.chunks.begin;
           size *= 2) {
        --depth;
        for (std::int64_t j = 0; j < count; ++j) open[depth - 1][j] += open[depth][j];
      }
    }
    for (int plane = 0; plane < depth; ++plane) Store(task, open[plane], plane);
  }

 private:
  const std::uint8_t* Weights(const Task& task, std::int64_t chunk_index) const {
    const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(chunk_index)];
    return reinterpret_cast<const std::uint8_t*>(product_.weight.data) +
           task.expert * expert_bytes_ + place.data + task.block * place.block_bytes;
  }

  /// The weights that this thread is likely to need after that chunk of the task.
  const std::uint8_t* WeightsAfter(const Task& task, std::int64_t chunk_index) const {
    if (chunk_index + 1 < layout_.num_chunks()) return Weights(task, chunk_index + 1);
    Task next = task;
    next.block = std::min(task.block + 1, layout_.blocks().size() - 1);
    return Weights(next, 0);
  }

  /// Columns of the task's block up to the last one owned.
  std::int64_t ColumnsWanted(const Task& task) const {
    return std::min(kBlockColumns,
                    layout_.column_offset() + layout_.columns.size() - task.block * kBlockColumns);
  }

  void SumFloatChunk(const Task& task, std::int64_t chunk_index, float* leaf) const {
    const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(chunk_index)];
    const std::int64_t rows_per_step = RowsPerStep(layout_.type);
    const auto tile = layout_.type == WeightType::kBf16 ? tiles_.bf16 : tiles_.f32;
    const std::int64_t panel_k = kPanelSteps * rows_per_step;
    const std::int64_t k = layout_.ChunkRows(place.chunk).size();
    const std::uint8_t* weights = Weights(task, chunk_index);
    for (std::int64_t begin = 0; begin < k; begin += panel_k) {
      const std::uint8_t* next = weights + kPanelSteps * kStepBytes;
      tile({.weights = weights,
            .k = std::min(panel_k, k - begin),
            .x = product_.x.row<float>(task.row) + place.x + begin,
            .x_stride = product_.x.row_stride(),
            .rows = task.rows,
            .sums = leaf,
            .columns = ColumnsWanted(task),
            .next = begin + panel_k < k ? next : WeightsAfter(task, chunk_index)});
      weights = next;
    }
  }

  void SumInt8Chunk(const Task& task, std::int64_t chunk_index, float* leaf) const {
    const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(chunk_index)];
    alignas(64) float flushes[kPanelRows * kBlockColumns];
    const std::uint8_t* weights = Weights(task, chunk_index);
    const std::uint8_t* end = weights + place.block_bytes;
    const float* scales = product_.weight.scales + task.expert * expert_scales_ + place.scales +
                          task.block * kBlockColumns;
    const std::int16_t* x = activations_.values + (task.row * places_.steps + place.first_step) * 4;
    const std::int32_t* corrections =
        activations_.corrections + task.row * places_.runs + place.first_run;
    for (std::int64_t group = 0; group < place.groups; ++group) {
      std::fill(flushes, flushes + task.rows * kBlockColumns, 0.0f);
      const std::int64_t steps = DivideUp(layout_.GroupRows(place.chunk, group).size(), 4);
      for (std::int64_t begin = 0; begin < steps; begin += kPanelSteps) {
        const std::int64_t panel_steps = std::min(kPanelSteps, steps - begin);
        const std::uint8_t* next = weights + panel_steps * kStepBytes;
        tiles_.int8({.weights = weights,
                     .steps = panel_steps,
                     .x = x,
                     .x_stride = places_.steps * 4,
                     .corrections = corrections,
                     .corrections_stride = places_.runs,
                     .rows = task.rows,
                     .sums = flushes,
                     .columns = ColumnsWanted(task),
                     .next = next < end ? next : WeightsAfter(task, chunk_index)});
        weights = next;
        x += panel_steps * 4;
        ++corrections;
      }
      for (std::int64_t r = 0; r < task.rows; ++r) {
        for (std::int64_t c = 0; c < kBlockColumns; ++c) {
          leaf[r * kBlockColumns + c] += flushes[r * kBlockColumns + c] * scales[c];
        }
      }
      scales += stored_columns_;
    }
    for (std::int64_t r = 0; r < task.rows; ++r) {
      const float scale = activations_.scales[(task.row + r) * layout_.num_chunks() + chunk_index];
      for (std::int64_t c = 0; c < kBlockColumns; ++c) leaf[r * kBlockColumns + c] *= scale;
    }
  }

  /// Writes the block's owned columns to the rows of one plane.
  void Store(const Task& task, const float* sums, std::int64_t plane) const {
    const std::int64_t first = task.block * kBlockColumns - layout_.column_offset();
    const std::int64_t begin = std::max<std::int64_t>(0, -first);
    const std::int64_t end = ColumnsWanted(task);
    for (std::int64_t r = 0; r < task.rows; ++r) {
      float* out = product_.out + plane * product_.out_plane_stride +
                   (task.row + r) * product_.out_row_stride + first;
      for (std::int64_t c = begin; c < end; ++c) {
        out[c] = product_.multiplier * sums[r * kBlockColumns + c];
      }
    }
  }

  const Product& product_;
  const MatrixLayout& layout_;
  const Places& places_;
  const Activations& activations_;
  const MatmulTiles& tiles_;
  std::int64_t expert_bytes_;
  std::int64_t expert_scales_;
  std::int64_t stored_columns_;
};

/// The rows of x that local expert `expert` meets.
Range RowsOfExpert(const Product& product, std::int64_t expert) {
  if (product.offsets == nullptr) return {0, product.x.size(0)};
  return {product.offsets[expert], product.offsets[expert + 1]};
}

void RunProduct(const Product& product) {
  const MatrixLayout& layout = product.weight.layout;
  const MatmulTiles& tiles = ActiveTiles();
  const Places places(layout);
  const std::int64_t experts = layout.num_experts();
  const std::int64_t rows = RowsOfExpert(product, experts - 1).end;
  const Activations activations(product.workspace, places, product.x.size(0));
  const TaskRunner runner(product, places, activations, tiles);

  // A work item is one block and a share of one expert's rows. Experts without rows have none.
  const std::int64_t blocks = layout.blocks().size();
  std::int64_t busy_experts = 0;
  std::int64_t most_panels = 1;
  for (std::int64_t e = 0; e < experts; ++e) {
    busy_experts += !RowsOfExpert(product, e).empty();
    most_panels = std::max(most_panels, DivideUp(RowsOfExpert(product, e).size(), kPanelRows));
  }
  if (busy_experts == 0 || blocks == 0) return;
  const std::int64_t shares = std::min(most_panels, DivideUp(kFewestTasks, busy_experts * blocks));
  const std::int64_t items = busy_experts * blocks * shares;

#pragma omp parallel if (items > 1)
  {
    if (layout.type == WeightType::kInt8) {
#pragma omp for
      for (std::int64_t row = 0; row < rows; ++row) {
        QuantiseRow(product, places, tiles, row, activations);
      }
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t item = 0; item < items; ++item) {
      const std::int64_t share = item % shares;
      const std::int64_t block = item / shares % blocks;
      std::int64_t expert = -1;
      for (std::int64_t busy = item / shares / blocks; busy >= 0; --busy) {
        do ++expert;
        while (RowsOfExpert(product, expert).empty());
      }
      const Range own = RowsOfExpert(product, expert);
      const std::int64_t panels = DivideUp(own.size(), kPanelRows);
      for (std::int64_t panel = panels * share / shares; panel < panels * (share + 1) / shares;
           ++panel) {
        const std::int64_t row = own.begin + panel * kPanelRows;
        runner.Run({.expert = expert,
                    .block = block,
                    .row = row,
                    .rows = std::min(kPanelRows, own.end - row)});
      }
    }
  }
}

void CheckFloats(ConstTensorView view, int rank) {
  CHECK(view.dtype() == DType::kF32);
  CHECK(view.device() == Device::kCpu);
  CHECK_EQ(view.rank(), rank);
}

bool Overlap(ConstTensorView a, ConstTensorView b) {
  const auto end = [](ConstTensorView view) {
    const std::int64_t rows = view.size(0);
    const std::int64_t row = rows == 0 ? 0 : view.shape().elements() / rows;
    return rows == 0 ? view.raw()
                     : view.raw() + ((rows - 1) * view.row_stride() + row) * SizeOf(view.dtype());
  };
  return a.raw() < end(b) && b.raw() < end(a);
}

void CheckProduct(const PackedMatrix& weight, Split split, ConstTensorView out, ConstTensorView x,
                  ConstTensorView workspace) {
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
  CHECK(layout.type != WeightType::kInt8 || layout.group_rows > 0);
  CHECK(layout.WeightBytes() == 0 || !weight.empty());
  CHECK(reinterpret_cast<std::uintptr_t>(weight.data) % 64 == 0);
  CHECK(layout.ScaleBytes() == 0 || weight.scales != nullptr);

  CheckFloats(x, 2);
  CHECK_EQ(x.size(1), layout.InputRows().size());
  if (split == Split::kByOutput) {
    CheckFloats(out, 2);
    CHECK_EQ(out.size(0), x.size(0));
    CHECK_EQ(out.size(1), layout.columns.size());
  } else {
    CheckFloats(out, 3);
    CHECK_EQ(out.size(0), static_cast<std::int64_t>(MaximalSubtrees(layout.chunks).size()));
    CHECK_EQ(out.size(1), x.size(0));
    CHECK_EQ(out.size(2), layout.n);
  }
  const std::int64_t needed = MatmulWorkspaceBytes(layout, x.size(0));
  if (needed > 0) {
    CHECK(workspace.dtype() == DType::kU8);
    CHECK(workspace.device() == Device::kCpu);
    CHECK_GE(workspace.bytes(), needed);
    CHECK(reinterpret_cast<std::uintptr_t>(workspace.raw()) % kWorkspaceAlignment == 0);
    CHECK(!Overlap(workspace, x) && !Overlap(workspace, out));
  }
  CHECK(!Overlap(out, x));
}

void CheckOffsets(ConstTensorView offsets, const MatrixLayout& layout, std::int64_t rows) {
  CHECK(offsets.dtype() == DType::kI32);
  CHECK(offsets.device() == Device::kCpu);
  CHECK_EQ(offsets.rank(), 1);
  CHECK_EQ(offsets.size(0), layout.num_experts() + 1);
  const std::int32_t* values = offsets.data<std::int32_t>();
  CHECK_EQ(values[0], 0);
  for (std::int64_t e = 0; e < layout.num_experts(); ++e) CHECK_LE(values[e], values[e + 1]);
  CHECK_LE(values[layout.num_experts()], rows);
}

}  // namespace

std::int64_t MatmulWorkspaceBytes(const MatrixLayout& layout, std::int64_t rows) {
  if (layout.type != WeightType::kInt8) return 0;
  const Places places(layout);
  return Aligned(rows * places.steps * 8) + Aligned(rows * places.runs * 4) +
         Aligned(rows * layout.num_chunks() * 4);
}

void Check(const Matmul& op) {
  CheckProduct(op.weight, Split::kByOutput, op.out, op.x, op.workspace);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
}

void Check(const MatmulPartials& op) {
  CheckProduct(op.weight, Split::kByInput, op.out, op.x, op.workspace);
  CHECK_EQ(op.weight.layout.num_experts(), 1);
}

void Check(const GroupedMatmul& op) {
  CheckProduct(op.weight, Split::kByOutput, op.out, op.x, op.workspace);
  CheckOffsets(op.offsets, op.weight.layout, op.x.size(0));
}

void Check(const GroupedMatmulPartials& op) {
  CheckProduct(op.weight, Split::kByInput, op.out, op.x, op.workspace);
  CheckOffsets(op.offsets, op.weight.layout, op.x.size(0));
}

void RunOnCpu(const Matmul& op) {
  RunProduct({.weight = op.weight,
              .x = op.x,
              .out = op.out.data<float>(),
              .out_row_stride = op.out.row_stride(),
              .multiplier = op.multiplier,
              .workspace = op.workspace.raw()});
}

void RunOnCpu(const MatmulPartials& op) {
  RunProduct({.weight = op.weight,
              .x = op.x,
              .out = op.out.data<float>(),
              .out_plane_stride = op.out.row_stride(),
              .out_row_stride = op.out.size(2),
              .workspace = op.workspace.raw()});
}

void RunOnCpu(const GroupedMatmul& op) {
  RunProduct({.weight = op.weight,
              .x = op.x,
              .offsets = op.offsets.data<std::int32_t>(),
              .out = op.out.data<float>(),
              .out_row_stride = op.out.row_stride(),
              .workspace = op.workspace.raw()});
}

void RunOnCpu(const GroupedMatmulPartials& op) {
  RunProduct({.weight = op.weight,
              .x = op.x,
              .offsets = op.offsets.data<std::int32_t>(),
              .out = op.out.data<float>(),
              .out_plane_stride = op.out.row_stride(),
              .out_row_stride = op.out.size(2),
              .workspace = op.workspace.raw()});
}

}  // namespace jubal

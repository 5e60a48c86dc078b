#include "kernels/block_product.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu_isa.h"

namespace jubal {
namespace {

constexpr std::int64_t kWorkspaceAlignment = 64;

std::int64_t Aligned(std::int64_t bytes) {
  return DivideUp(bytes, kWorkspaceAlignment) * kWorkspaceAlignment;
}

/// Steps of 4 integers that `rows` of one group take.
std::int64_t ActivationSteps(WeightType type, std::int64_t rows) {
  const std::int64_t per_step = RowsPerStep(type);
  return DivideUp(rows, per_step) * per_step / 4;
}

}  // namespace

const MatmulTiles& ActiveMatmulTiles() {
#if defined(__x86_64__)
  switch (ActiveCpuIsa()) {
    case CpuIsa::kPortable:
      break;
    case CpuIsa::kAvx2:
      return kAvx2MatmulTiles;
    case CpuIsa::kAvx512:
      return kAvx512MatmulTiles;
  }
#endif
  return kPortableMatmulTiles;
}

ChunkPlaces::ChunkPlaces(const MatrixLayout& layout, const MatrixLayout& strides) {
  const std::int64_t blocks = strides.blocks().size();
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
    if (HasScales(layout.type)) {
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t group_steps =
            ActivationSteps(layout.type, layout.GroupRows(chunk, group).size());
        steps += group_steps;
        runs += DivideUp(group_steps, kPanelSteps);
      }
    }
    data += layout.BlockBytes(chunk) * blocks;
    scales += groups * strides.stored_columns();
  }
}

std::int64_t QuantisedRows::Bytes(const MatrixLayout& layout, std::int64_t rows) {
  if (!HasScales(layout.type)) return 0;
  const ChunkPlaces places(layout, layout);
  return Aligned(rows * Stride(places)) + Aligned(rows * places.runs * 4) +
         Aligned(rows * layout.num_chunks() * 4);
}

/// An odd number of KiB: then the KiB of neighbouring rows that meet one panel lie in different
/// sets of a first-level cache.
std::int64_t QuantisedRows::Stride(const ChunkPlaces& places) {
  constexpr std::int64_t kKib = 1024;
  return (DivideUp(places.steps * kActivationStepBytes, kKib) | 1) * kKib;
}

QuantisedRows::QuantisedRows(const MatrixLayout& layout, std::byte* workspace, std::int64_t rows)
    : layout_(layout), places_(layout, layout) {
  if (!HasScales(layout.type)) return;
  values_ = workspace;
  workspace += Aligned(rows * stride());
  sums_ = reinterpret_cast<std::int32_t*>(workspace);
  workspace += Aligned(rows * places_.runs * 4);
  scales_ = reinterpret_cast<float*>(workspace);
}

void QuantisedRows::Quantise(const float* x, std::int64_t row, std::int64_t index) const {
  if (!HasScales(layout_.type)) return;
  const MatmulTiles& tiles = ActiveMatmulTiles();
  const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(index)];
  x += place.x;
  std::byte* values = values_ + row * stride() + place.first_step * kActivationStepBytes;
  std::int32_t* sums = sums_ + row * places_.runs + place.first_run;
  const std::uint32_t largest = tiles.largest_magnitude(x, layout_.ChunkRows(place.chunk).size());
  const bool finite =
      largest < std::bit_cast<std::uint32_t>(std::numeric_limits<float>::infinity());
  const float scale = finite ? std::bit_cast<float>(largest) / kLargestActivation
                             : std::numeric_limits<float>::quiet_NaN();
  scales_[row * layout_.num_chunks() + index] = scale;
  for (std::int64_t group = 0; group < place.groups; ++group) {
    const std::int64_t rows = layout_.GroupRows(place.chunk, group).size();
    for (std::int64_t begin = 0; begin < rows; begin += kPanelSteps * 4) {
      const std::int64_t count = std::min(rows - begin, kPanelSteps * 4);
      const std::int64_t bytes = ActivationSteps(layout_.type, count) * kActivationStepBytes;
      const std::int64_t written =
          scale > 0 ? DivideUp(count, 4) * kActivationStepBytes : 0;  // the rest is padding
      *sums++ = scale > 0 ? tiles.quantise(x, count, scale, values) : 0;
      std::fill(values + written, values + bytes, std::byte{0});
      x += count;
      values += bytes;
    }
  }
}

void QuantisedRows::QuantiseAll(ConstTensorView x, std::int64_t rows) const {
  if (!HasScales(layout_.type)) return;
  const std::int64_t chunks = layout_.num_chunks();
#pragma omp for collapse(2)
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t index = 0; index < chunks; ++index) {
      Quantise(x.row<float>(row), row, index);
    }
  }
}

BlockProduct::BlockProduct(const PackedMatrix& weight, ConstTensorView x,
                           const QuantisedRows& quantised)
    : weight_(weight),
      layout_(weight.layout),
      x_(x),
      quantised_(quantised),
      tiles_(ActiveMatmulTiles()),
      places_(weight.layout, weight.strides()),
      blocks_(weight.layout.blocks().size()),
      expert_bytes_(weight.strides().ExpertBytes()),
      expert_scales_(weight.strides().ExpertScales()),
      scales_stride_(weight.strides().stored_columns()) {}

const std::uint8_t* BlockProduct::ChunkWeights(std::int64_t expert, std::int64_t block,
                                               std::int64_t index) const {
  const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(index)];
  return reinterpret_cast<const std::uint8_t*>(weight_.data) + expert * expert_bytes_ + place.data +
         block * place.block_bytes;
}

const float* BlockProduct::Scales(std::int64_t expert, std::int64_t block,
                                  const ChunkPlace& place) const {
  return weight_.scales + expert * expert_scales_ + place.scales + block * kBlockColumns;
}

Range BlockProduct::OwnedColumns(std::int64_t block) const {
  const std::int64_t first = block * kBlockColumns - layout_.column_offset();
  return {std::max<std::int64_t>(0, -first),
          std::min(kBlockColumns, layout_.columns.size() - first)};
}

void BlockProduct::Store(std::int64_t block, RowRange rows, const float* sums, float multiplier,
                         float* out, std::int64_t out_stride) const {
  const std::int64_t first = block * kBlockColumns - layout_.column_offset();
  const Range owned = OwnedColumns(block);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    float* to = out + (rows.begin + r) * out_stride + first;
    for (std::int64_t c = owned.begin; c < owned.end; ++c) {
      to[c] = multiplier * sums[r * kBlockColumns + c];
    }
  }
}

void BlockProduct::Sum(std::int64_t expert, std::int64_t block, RowRange rows,
                       const std::uint8_t* next, BlockSums& sums) const {
  // The open nodes of the tree over the chunks; the last one is being summed.
  const std::int64_t count = rows.count * kBlockColumns;
  int depth = 0;
  for (std::int64_t i = 0; i < layout_.num_chunks(); ++i) {
    float* leaf = sums.values[depth++];
    std::fill(leaf, leaf + count, 0.0f);
    const std::uint8_t* after =
        i + 1 < layout_.num_chunks() ? ChunkWeights(expert, block, i + 1) : next;
    if (layout_.type == WeightType::kInt8) {
      SumInt8(expert, block, rows, i, after, leaf);
    } else if (layout_.type == WeightType::kInt4) {
      SumInt4(expert, block, rows, i, after, leaf);
    } else {
      SumFloats(expert, block, rows, i, after, leaf);
    }
    const std::int64_t end = layout_.chunks.begin + i + 1;
    for (std::int64_t size = 2; end % size == 0 && end - size >= layout_.chunks.begin; size *= 2) {
      --depth;
      tiles_.add(sums.values[depth], count, sums.values[depth - 1]);
    }
  }
  sums.planes = depth;
}

void BlockProduct::SumFloats(std::int64_t expert, std::int64_t block, RowRange rows,
                             std::int64_t index, const std::uint8_t* next, float* leaf) const {
  const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(index)];
  const auto tile = layout_.type == WeightType::kBf16 ? tiles_.bf16 : tiles_.f32;
  const std::int64_t panel_k = kPanelSteps * RowsPerStep(layout_.type);
  const std::int64_t k = layout_.ChunkRows(place.chunk).size();
  const std::uint8_t* weights = ChunkWeights(expert, block, index);
  for (std::int64_t begin = 0; begin < k; begin += panel_k) {
    const std::uint8_t* following = weights + kPanelSteps * kBlockStepBytes;
    tile({.weights = weights,
          .k = std::min(panel_k, k - begin),
          .x = x_.row<float>(rows.begin) + place.x + begin,
          .x_stride = x_.row_stride(),
          .rows = rows.count,
          .sums = leaf,
          .columns = OwnedColumns(block).end,
          .next = begin + panel_k < k ? following : next});
    weights = following;
  }
}

void BlockProduct::SumInt8(std::int64_t expert, std::int64_t block, RowRange rows,
                           std::int64_t index, const std::uint8_t* next, float* leaf) const {
  const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(index)];
  const std::int64_t count = rows.count * kBlockColumns;
  alignas(64) float flushes[kPanelRows * kBlockColumns];
  const std::uint8_t* weights = ChunkWeights(expert, block, index);
  const std::uint8_t* end = weights + place.block_bytes;
  const float* scales = Scales(expert, block, place);
  const std::byte* x = quantised_.values(rows.begin) + place.first_step * kActivationStepBytes;
  const std::int32_t* sums_of_x = quantised_.sums(rows.begin) + place.first_run;
  for (std::int64_t group = 0; group < place.groups; ++group) {
    std::fill(flushes, flushes + count, 0.0f);
    const std::int64_t steps = DivideUp(layout_.GroupRows(place.chunk, group).size(), 4);
    for (std::int64_t begin = 0; begin < steps; begin += kPanelSteps) {
      const std::int64_t panel_steps = std::min(kPanelSteps, steps - begin);
      const std::uint8_t* following = weights + panel_steps * kBlockStepBytes;
      tiles_.int8({.weights = weights,
                   .steps = panel_steps,
                   .group_steps = panel_steps,
                   .x = x,
                   .x_stride = quantised_.stride(),
                   .sums_of_x = sums_of_x,
                   .sums_of_x_stride = quantised_.sums_stride(),
                   .scales = nullptr,
                   .scales_stride = 0,
                   .rows = rows.count,
                   .sums = flushes,
                   .columns = OwnedColumns(block).end,
                   .next = following < end ? following : next});
      weights = following;
      x += panel_steps * kActivationStepBytes;
      ++sums_of_x;
    }
    tiles_.add_scaled(flushes, scales, rows.count, leaf);
    scales += scales_stride_;
  }
  for (std::int64_t r = 0; r < rows.count; ++r) {
    tiles_.scale(quantised_.scale(rows.begin + r, index), kBlockColumns, leaf + r * kBlockColumns);
  }
}

void BlockProduct::SumInt4(std::int64_t expert, std::int64_t block, RowRange rows,
                           std::int64_t index, const std::uint8_t* next, float* leaf) const {
  const ChunkPlace& place = places_.chunks[static_cast<std::size_t>(index)];
  const std::uint8_t* weights = ChunkWeights(expert, block, index);
  const std::uint8_t* end = weights + place.block_bytes;
  const float* scales = Scales(expert, block, place);
  const std::byte* x = quantised_.values(rows.begin) + place.first_step * kActivationStepBytes;
  const std::int32_t* sums_of_x = quantised_.sums(rows.begin) + place.first_run;
  for (std::int64_t group = 0; group < place.groups;) {
    // As many groups of one size as a panel holds: the chunk's edges may cut the first and last.
    const std::int64_t size = layout_.GroupRows(place.chunk, group).size();
    const std::int64_t group_steps = ActivationSteps(WeightType::kInt4, size);
    std::int64_t groups = 1;
    while (group + groups < place.groups && (groups + 1) * group_steps <= kPanelSteps &&
           layout_.GroupRows(place.chunk, group + groups).size() == size) {
      ++groups;
    }
    const std::int64_t steps = groups * group_steps;
    const std::uint8_t* following = weights + steps / 2 * kBlockStepBytes;
    tiles_.int4({.weights = weights,
                 .steps = steps,
                 .group_steps = group_steps,
                 .x = x,
                 .x_stride = quantised_.stride(),
                 .sums_of_x = sums_of_x,
                 .sums_of_x_stride = quantised_.sums_stride(),
                 .scales = scales,
                 .scales_stride = scales_stride_,
                 .rows = rows.count,
                 .sums = leaf,
                 .columns = OwnedColumns(block).end,
                 .next = following < end ? following : next});
    weights = following;
    x += steps * kActivationStepBytes;
    sums_of_x += groups;
    scales += groups * scales_stride_;
    group += groups;
  }
  for (std::int64_t r = 0; r < rows.count; ++r) {
    tiles_.scale(quantised_.scale(rows.begin + r, index), kBlockColumns, leaf + r * kBlockColumns);
  }
}

void CheckFloats(ConstTensorView view, int rank, Device device) {
  CHECK(view.dtype() == DType::kF32);
  CHECK(view.device() == device);
  CHECK_EQ(view.rank(), rank);
}

void CheckWorkspace(ConstTensorView workspace, std::int64_t needed, Device device) {
  if (needed == 0) return;
  CHECK(workspace.dtype() == DType::kU8);
  CHECK(workspace.device() == device);
  CHECK_GE(workspace.bytes(), needed);
  CHECK(reinterpret_cast<std::uintptr_t>(workspace.raw()) % 64 == 0);
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

std::int64_t PanelsOf(Range rows) { return DivideUp(rows.size(), kPanelRows); }

RowRange PanelOf(Range rows, std::int64_t part, std::int64_t parts) {
  const std::int64_t size = DivideUp(DivideUp(rows.size(), parts), 4) * 4;
  const std::int64_t begin = std::min(rows.end, rows.begin + part * size);
  return {begin, std::min(size, rows.end - begin)};
}

}  // namespace jubal

#ifndef JUBAL_KERNELS_PACK_WEIGHTS_FORMS_H_
#define JUBAL_KERNELS_PACK_WEIGHTS_FORMS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/pack_weights.h"

namespace jubal {

// What the forms of PackWeights and PackScales have in common.

/// The steps of one block of a chunk, and the rows in them.
struct StepMap {
  Range rows;  // of the chunk
  std::int64_t rows_per_step = 1;
  std::int64_t group_rows = 0;   // a type without scales has one group
  std::int64_t second = 0;       // first row of the chunk's second group
  std::int64_t first_steps = 0;  // of its first group
  std::int64_t group_steps = 1;  // of the others

  /// The step that has this row of the chunk.
  std::int64_t StepOf(std::int64_t row) const {
    if (row < second) return (row - rows.begin) / rows_per_step;
    const std::int64_t beyond = row - second;
    return first_steps + beyond / group_rows * group_steps + beyond % group_rows / rows_per_step;
  }
  /// The rows that step has.
  JUBAL_HOST_DEVICE Range RowsOf(std::int64_t step) const {
    std::int64_t begin = rows.begin + step * rows_per_step;
    std::int64_t end = second;
    if (step >= first_steps) {
      const std::int64_t beyond = step - first_steps;
      const std::int64_t group = second + beyond / group_steps * group_rows;
      begin = group + beyond % group_steps * rows_per_step;
      end = group + group_rows < rows.end ? group + group_rows : rows.end;
    }
    return {begin, begin + rows_per_step < end ? begin + rows_per_step : end};
  }
};

StepMap StepMapOf(const MatrixLayout& layout, std::int64_t chunk);

/// What a slab holds of one chunk, and where it goes.
struct SlabOfChunk {
  StepMap chunk;
  WeightType type;
  Range steps;      // of each block
  Range columns;    // of y
  std::int64_t n;   // columns from here on are padding
  std::byte* data;  // of the block with the first of the columns
  std::int64_t block_bytes;
  const std::byte* source;  // of row first_row and column first_column of y
  std::int64_t first_row;
  std::int64_t first_column;
  std::int64_t row_bytes;  // from one k to the next
  std::int64_t column_bytes;

  std::int64_t FirstBlock() const { return columns.begin / kBlockColumns; }
  std::int64_t Blocks() const { return DivideUp(columns.end, kBlockColumns) - FirstBlock(); }
};

/// Calls visit(SlabOfChunk) for each chunk of which the slab has something.
template <class Visit>
void ForEachChunk(const PackWeights& op, const Visit& visit) {
  const MatrixLayout& layout = op.layout;
  const UnpackedSlab& from = op.source;
  const std::int64_t element = HasScales(layout.type) ? 1 : 4 / RowsPerStep(layout.type);
  const std::int64_t row_bytes = from.output_major ? element : from.row_bytes;
  const std::int64_t column_bytes = from.output_major ? from.row_bytes : element;
  const Range k = from.output_major ? from.columns : from.rows;
  const Range n = from.output_major ? from.rows : from.columns;
  const Range blocks = layout.blocks();
  Range columns{std::max(n.begin, blocks.begin * kBlockColumns),
                std::min(n.end, blocks.end * kBlockColumns)};
  if (columns.empty()) return;
  if (columns.end == layout.n) columns.end = blocks.end * kBlockColumns;
  std::byte* chunk_data = op.data.raw() + op.expert * layout.ExpertBytes();
  for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
    const StepMap steps = StepMapOf(layout, chunk);
    const Range rows{std::max(k.begin, steps.rows.begin), std::min(k.end, steps.rows.end)};
    const std::int64_t block_bytes = layout.BlockBytes(chunk);
    const std::int64_t first_block = columns.begin / kBlockColumns - blocks.begin;
    if (!rows.empty()) {
      visit(SlabOfChunk{.chunk = steps,
                        .type = layout.type,
                        .steps = {steps.StepOf(rows.begin), steps.StepOf(rows.end - 1) + 1},
                        .columns = columns,
                        .n = layout.n,
                        .data = chunk_data + first_block * block_bytes,
                        .block_bytes = block_bytes,
                        .source = from.data,
                        .first_row = k.begin,
                        .first_column = n.begin,
                        .row_bytes = row_bytes,
                        .column_bytes = column_bytes});
    }
    chunk_data += block_bytes * blocks.size();
  }
}

/// `bytes` bytes, the first one lowest.
JUBAL_HOST_DEVICE inline std::uint32_t LoadUnaligned(const std::byte* from, int bytes) {
  std::uint32_t word = 0;
  for (int i = 0; i < bytes; ++i) word |= static_cast<std::uint32_t>(from[i]) << (8 * i);
  return word;
}

/// Whether a float's exponent is that of infinities and what is no number.
JUBAL_HOST_DEVICE inline bool HasTopExponent(std::uint32_t bits) {
  return (bits & 0x7f800000u) == 0x7f800000u;
}

/// The four bytes of a column of one step.
JUBAL_HOST_DEVICE inline std::uint32_t PackedWord(const SlabOfChunk& slab, std::int64_t step,
                                                  std::int64_t column, bool& broken) {
  const Range rows = slab.chunk.RowsOf(step);
  const auto held = column < slab.n ? static_cast<int>(rows.end - rows.begin) : 0;
  const std::byte* from = slab.source + (rows.begin - slab.first_row) * slab.row_bytes +
                          (column - slab.first_column) * slab.column_bytes;
  std::uint32_t word = 0;
  switch (slab.type) {
    case WeightType::kF32:
      if (held > 0) word = LoadUnaligned(from, 4);
      broken |= HasTopExponent(word);
      break;
    case WeightType::kBf16:
      for (int i = 0; i < held; ++i) {
        word |= LoadUnaligned(from + i * slab.row_bytes, 2) << (16 * i);
      }
      broken |= HasTopExponent(word) || HasTopExponent(word << 16);
      break;
    case WeightType::kInt8:
      for (int i = 0; i < held; ++i) {
        word |= LoadUnaligned(from + i * slab.row_bytes, 1) << (8 * i);
      }
      word ^= 0x80808080u;
      break;
    case WeightType::kInt4:  // + 8 modulo 16 flips the upper bit
      for (int i = 0; i < held; ++i) {
        const std::uint32_t nibble = LoadUnaligned(from + i * slab.row_bytes, 1) & 0xf;
        word |= nibble << (i < 4 ? 8 * i : 8 * (i - 4) + 4);
      }
      word ^= 0x88888888u;
      break;
  }
  return word;
}

/// What PackScales writes for one chunk.
struct ScalesOfChunk {
  float* scales;            // of the first of its groups that the source has
  std::int64_t groups;      // so many
  std::int64_t stored;      // columns
  std::int64_t first;       // global number of the first column
  std::int64_t n;           // columns from here on are padding
  const std::byte* source;  // of that group
};

/// Calls visit(ScalesOfChunk) for each chunk of which the source has groups.
template <class Visit>
void ForEachChunk(const PackScales& op, const Visit& visit) {
  const MatrixLayout& layout = op.layout;
  const std::int64_t stored = layout.stored_columns();
  if (stored == 0) return;
  float* chunk_scales = op.scales.data<float>() + op.expert * layout.ExpertScales();
  for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
    const std::int64_t groups = layout.ChunkGroups(chunk);
    const std::int64_t first = layout.ChunkRows(chunk).begin / layout.group_rows;
    const Range held{std::max(first, op.groups.begin), std::min(first + groups, op.groups.end)};
    if (!held.empty()) {
      visit(ScalesOfChunk{.scales = chunk_scales + (held.begin - first) * stored,
                          .groups = held.size(),
                          .stored = stored,
                          .first = layout.blocks().begin * kBlockColumns,
                          .n = layout.n,
                          .source = op.source + (held.begin - op.groups.begin) * layout.n * 2});
    }
    chunk_scales += groups * stored;
  }
}

/// The bits of the scale of number `column` of those stored.
JUBAL_HOST_DEVICE inline std::uint32_t PackedScale(const ScalesOfChunk& of, std::int64_t group,
                                                   std::int64_t column, bool& broken) {
  const std::int64_t global = of.first + column;
  if (global >= of.n) return 0;
  const std::uint32_t bits = LoadUnaligned(of.source + (group * of.n + global) * 2, 2) << 16;
  broken |= HasTopExponent(bits);
  return bits;
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_PACK_WEIGHTS_FORMS_H_

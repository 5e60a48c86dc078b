#include "kernels/packed_matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/check.h"

namespace jubal {
namespace {

std::int64_t StepsOf(const MatrixLayout& layout, Range rows) {
  return DivideUp(rows.size(), RowsPerStep(layout.type));
}

// One job of a thread: steps of one scale group and a few neighbouring blocks. A source [K, N] is
// read kTileBlocks · 64 neighbouring elements at a time, which spares the TLB.
constexpr std::int64_t kTileSteps = 128;
constexpr std::int64_t kTileBlocks = 8;

struct Tile {
  Range rows;                // global k
  Range blocks;              // global
  std::byte* out = nullptr;  // of the first block's first step
  std::int64_t block_bytes = 0;
};

/// One step of one block from kRows rows [K, N]: out[column][row].
template <class Element, std::int64_t kRows>
void PackStep(const std::byte* source, std::int64_t row_bytes, std::int64_t rows,
              std::int64_t columns, Element flip, std::byte* out) {
  Element in[kRows][kBlockColumns];
  if (rows == kRows && columns == kBlockColumns) {
    for (std::int64_t r = 0; r < kRows; ++r) {
      std::memcpy(in[r], source + r * row_bytes, sizeof(in[r]));
    }
  } else {
    std::memset(in, 0, sizeof(in));
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(in[r], source + r * row_bytes,
                  static_cast<std::size_t>(columns) * sizeof(Element));
    }
  }
  auto* packed = reinterpret_cast<Element*>(out);
  for (std::int64_t c = 0; c < kBlockColumns; ++c) {
    for (std::int64_t r = 0; r < kRows; ++r) {
      packed[c * kRows + r] = static_cast<Element>(in[r][c] ^ flip);
    }
  }
}

template <class Element, std::int64_t kRows>
void PackInputMajor(const MatrixLayout& layout, const std::byte* source, Element flip,
                    const Tile& tile) {
  const std::int64_t row_bytes = layout.n * static_cast<std::int64_t>(sizeof(Element));
  for (std::int64_t row = tile.rows.begin; row < tile.rows.end; row += kRows) {
    const std::int64_t rows = std::min(kRows, tile.rows.end - row);
    std::byte* out = tile.out + (row - tile.rows.begin) / kRows * kBlockStepBytes;
    for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
      const std::int64_t column = block * kBlockColumns;
      PackStep<Element, kRows>(
          source + row * row_bytes + column * static_cast<std::int64_t>(sizeof(Element)), row_bytes,
          rows, std::min(kBlockColumns, layout.n - column), flip, out);
      out += tile.block_bytes;
    }
  }
}

/// From [N, K]: a step of a column is four consecutive bytes of the source whatever the type.
void PackOutputMajor(const MatrixLayout& layout, const std::byte* source, const Tile& tile) {
  const std::int64_t element_bytes = 4 / RowsPerStep(layout.type);
  const std::uint32_t flip = layout.type == WeightType::kInt8 ? 0x80808080u : 0;
  const std::int64_t bytes = tile.rows.size() * element_bytes;
  const std::int64_t steps = StepsOf(layout, tile.rows);
  // The columns of a block lie far apart: gathered here first, in long pieces, at distances that
  // do not compete for the same sets of the cache.
  std::uint32_t words[kBlockColumns][kTileSteps + 1];
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    const std::int64_t first = block * kBlockColumns;
    const std::int64_t columns = std::min(kBlockColumns, layout.n - first);
    if (columns < kBlockColumns || bytes % 4 != 0) std::memset(words, 0, sizeof(words));
    for (std::int64_t c = 0; c < columns; ++c) {
      std::memcpy(words[c], source + ((first + c) * layout.k + tile.rows.begin) * element_bytes,
                  static_cast<std::size_t>(bytes));
    }
    auto* out =
        reinterpret_cast<std::uint32_t*>(tile.out + (block - tile.blocks.begin) * tile.block_bytes);
    for (std::int64_t step = 0; step < steps; ++step) {
      for (std::int64_t c = 0; c < kBlockColumns; ++c) *out++ = words[c][step] ^ flip;
    }
  }
}

void PackInt4(const MatrixLayout& layout, const UnpackedMatrix& source, const Tile& tile) {
  constexpr std::int64_t kRows = 8;
  constexpr std::uint8_t kZero = 8;
  const auto* weights = reinterpret_cast<const std::uint8_t*>(source.data);
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    const std::int64_t first = block * kBlockColumns;
    const std::int64_t columns = std::min(kBlockColumns, layout.n - first);
    auto* out =
        reinterpret_cast<std::uint8_t*>(tile.out + (block - tile.blocks.begin) * tile.block_bytes);
    for (std::int64_t row = tile.rows.begin; row < tile.rows.end; row += kRows) {
      const std::int64_t rows = std::min(kRows, tile.rows.end - row);
      std::uint8_t in[kRows][kBlockColumns] = {};
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
          in[r][c] = source.output_major ? weights[(first + c) * layout.k + row + r]
                                         : weights[(row + r) * layout.n + first + c];
        }
      }
      for (std::int64_t c = 0; c < kBlockColumns; ++c) {
        for (std::int64_t i = 0; i < 4; ++i) {
          const int low = (in[i][c] + kZero) & 0xf;
          const int high = (in[i + 4][c] + kZero) & 0xf;
          *out++ = static_cast<std::uint8_t>(low | high << 4);
        }
      }
    }
  }
}

void PackTile(const MatrixLayout& layout, const UnpackedMatrix& source, const Tile& tile) {
  if (layout.type == WeightType::kInt4) {
    PackInt4(layout, source, tile);
    return;
  }
  if (source.output_major) {
    PackOutputMajor(layout, source.data, tile);
    return;
  }
  switch (layout.type) {
    case WeightType::kF32:
      PackInputMajor<std::uint32_t, 1>(layout, source.data, 0, tile);
      return;
    case WeightType::kBf16:
      PackInputMajor<std::uint16_t, 2>(layout, source.data, 0, tile);
      return;
    case WeightType::kInt8:
      PackInputMajor<std::uint8_t, 4>(layout, source.data, 0x80, tile);
      return;
    case WeightType::kInt4:
      break;
  }
}

void PackScales(const MatrixLayout& layout, const std::byte* source, std::int64_t group,
                float* out) {
  const std::int64_t first = layout.blocks().begin * kBlockColumns;
  for (std::int64_t c = 0; c < layout.stored_columns(); ++c) {
    out[c] = 0.0f;
    if (first + c >= layout.n) continue;
    std::uint16_t bits;
    std::memcpy(&bits, source + (group * layout.n + first + c) * 2, sizeof(bits));
    out[c] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
}

void CheckPart(const MatrixLayout& whole, const MatrixLayout& part) {
  const auto within = [](Range inner, Range outer) {
    return outer.begin <= inner.begin && inner.end <= outer.end;
  };
  CHECK(part.type == whole.type && part.split == whole.split);
  CHECK(part.k == whole.k && part.n == whole.n && part.group_rows == whole.group_rows);
  CHECK(within(part.experts, whole.experts) && within(part.chunks, whole.chunks));
  CHECK(within(part.columns, whole.columns));
}

/// How a chunk lies in memory: so many rows of all its blocks.
struct Rows {
  std::int64_t count = 0;
  std::int64_t block_bytes = 0;  // of one row
};

/// Where a part's bytes lie in the whole's: ascending, neighbours joined.
template <class RowsOf>
std::vector<Range> PartRanges(const MatrixLayout& whole, const MatrixLayout& part, RowsOf rows_of) {
  CheckPart(whole, part);
  std::vector<Range> ranges;
  if (part.columns.empty()) return ranges;
  const std::int64_t blocks = whole.blocks().size();
  const std::int64_t first = part.blocks().begin - whole.blocks().begin;
  std::int64_t row_begin = 0;
  for (std::int64_t expert = whole.experts.begin; expert < part.experts.end; ++expert) {
    for (std::int64_t chunk = whole.chunks.begin; chunk < whole.chunks.end; ++chunk) {
      const Rows rows = rows_of(chunk);
      const bool wanted = expert >= part.experts.begin && chunk >= part.chunks.begin &&
                          chunk < part.chunks.end && rows.block_bytes > 0;
      for (std::int64_t row = 0; row < rows.count; ++row) {
        const std::int64_t begin = row_begin + first * rows.block_bytes;
        const std::int64_t end = begin + part.blocks().size() * rows.block_bytes;
        row_begin += blocks * rows.block_bytes;
        if (!wanted) continue;
        if (!ranges.empty() && ranges.back().end == begin) {
          ranges.back().end = end;
        } else {
          ranges.push_back({begin, end});
        }
      }
    }
  }
  return ranges;
}

}  // namespace

static_assert(std::endian::native == std::endian::little, "steps are words of the checkpoint");

std::string_view NameOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return "f32";
    case WeightType::kBf16:
      return "bf16";
    case WeightType::kInt8:
      return "int8";
    case WeightType::kInt4:
      return "int4";
  }
  CheckFailed(__FILE__, __LINE__, "unknown weight type");
}

Range MatrixLayout::blocks() const {
  const std::int64_t begin = columns.begin / kBlockColumns;
  return {begin, columns.empty() ? begin : DivideUp(columns.end, kBlockColumns)};
}

Range MatrixLayout::ChunkRows(std::int64_t chunk) const {
  return split == Split::kByOutput ? Range{0, k} : ChunkColumns(k, static_cast<int>(chunk));
}

Range MatrixLayout::InputRows() const {
  return split == Split::kByOutput ? Range{0, k} : ColumnsOfChunks(k, chunks);
}

std::int64_t MatrixLayout::ChunkGroups(std::int64_t chunk) const {
  if (!HasScales(type)) return 1;
  const Range rows = ChunkRows(chunk);
  return rows.empty() ? 0 : (rows.end - 1) / group_rows - rows.begin / group_rows + 1;
}

Range MatrixLayout::GroupRows(std::int64_t chunk, std::int64_t group) const {
  const Range rows = ChunkRows(chunk);
  if (!HasScales(type)) return rows;
  const std::int64_t begin = (rows.begin / group_rows + group) * group_rows;
  return {std::max(rows.begin, begin), std::min(rows.end, begin + group_rows)};
}

std::int64_t MatrixLayout::ChunkSteps(std::int64_t chunk) const {
  std::int64_t steps = 0;
  for (std::int64_t group = 0; group < ChunkGroups(chunk); ++group) {
    steps += StepsOf(*this, GroupRows(chunk, group));
  }
  return steps;
}

std::int64_t MatrixLayout::ExpertBytes() const {
  std::int64_t bytes = 0;
  for (std::int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) bytes += BlockBytes(chunk);
  return bytes * blocks().size();
}

std::int64_t MatrixLayout::ExpertScales() const {
  if (!HasScales(type)) return 0;
  std::int64_t groups = 0;
  for (std::int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) groups += ChunkGroups(chunk);
  return groups * stored_columns();
}

PackedMatrix PartOf(const PackedMatrix& whole, const MatrixLayout& part) {
  const MatrixLayout& in = whole.layout;
  CHECK(!whole.within);
  CheckPart(in, part);
  std::int64_t bytes = in.ExpertBytes() * (part.experts.begin - in.experts.begin);
  std::int64_t scales = in.ExpertScales() * (part.experts.begin - in.experts.begin);
  for (std::int64_t chunk = in.chunks.begin; chunk < part.chunks.begin; ++chunk) {
    bytes += in.BlockBytes(chunk) * in.blocks().size();
    scales += in.ChunkGroups(chunk) * in.stored_columns();
  }
  const std::int64_t blocks = part.columns.empty() ? 0 : part.blocks().begin - in.blocks().begin;
  if (blocks > 0) {
    bytes += blocks * in.BlockBytes(part.chunks.begin);
    scales += blocks * kBlockColumns;
  }
  return {.layout = part,
          .data = whole.data + bytes,
          .scales = whole.scales == nullptr ? nullptr : whole.scales + scales,
          .device = whole.device,
          .within = in};
}

std::vector<Range> DataRanges(const MatrixLayout& whole, const MatrixLayout& part) {
  return PartRanges(whole, part, [&](std::int64_t chunk) {
    return Rows{.count = 1, .block_bytes = whole.BlockBytes(chunk)};
  });
}

std::vector<Range> ScaleRanges(const MatrixLayout& whole, const MatrixLayout& part) {
  if (!HasScales(whole.type)) return {};
  return PartRanges(whole, part, [&](std::int64_t chunk) {
    return Rows{.count = whole.ChunkGroups(chunk),
                .block_bytes = kBlockColumns * SizeOf(DType::kF32)};
  });
}

void PackMatrix(const MatrixLayout& layout, std::int64_t expert, const UnpackedMatrix& source,
                std::byte* data, float* scales) {
  CHECK(expert >= 0 && expert < layout.num_experts());
  CHECK(!HasScales(layout.type) || (layout.group_rows > 0 && source.scales != nullptr));
  const Range blocks = layout.blocks();
  const std::int64_t tile_rows = kTileSteps * RowsPerStep(layout.type);
  const std::int64_t block_tiles = DivideUp(blocks.size(), kTileBlocks);

#pragma omp parallel
  {
    std::byte* chunk_data = data + expert * layout.ExpertBytes();
    float* group_scales = scales + expert * layout.ExpertScales();
    for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
      const std::int64_t block_bytes = layout.BlockBytes(chunk);
      std::byte* group_data = chunk_data;  // of the first block
      for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
        const Range rows = layout.GroupRows(chunk, group);
        const std::int64_t row_tiles = DivideUp(rows.size(), tile_rows);
#pragma omp for collapse(2) nowait
        for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
          for (std::int64_t block_tile = 0; block_tile < block_tiles; ++block_tile) {
            const std::int64_t row = rows.begin + row_tile * tile_rows;
            const std::int64_t block = blocks.begin + block_tile * kTileBlocks;
            PackTile(layout, source,
                     {.rows = {row, std::min(rows.end, row + tile_rows)},
                      .blocks = {block, std::min(blocks.end, block + kTileBlocks)},
                      .out = group_data + row_tile * kTileSteps * kBlockStepBytes +
                             block_tile * kTileBlocks * block_bytes,
                      .block_bytes = block_bytes});
          }
        }
        if (HasScales(layout.type)) {
#pragma omp single nowait
          PackScales(layout, source.scales, rows.begin / layout.group_rows, group_scales);
          group_scales += layout.stored_columns();
        }
        group_data += StepsOf(layout, rows) * kBlockStepBytes;
      }
      chunk_data += block_bytes * blocks.size();
    }
  }
}

}  // namespace jubal

#include "kernels/gpu_products.h"

#include <algorithm>

namespace jubal {
namespace {

std::int64_t Aligned(std::int64_t bytes) { return DivideUp(bytes, 64) * 64; }

}  // namespace

std::int64_t ChunkSlabs(const MatrixLayout& layout, std::int64_t chunk) {
  std::int64_t slabs = 0;
  for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
    slabs += DivideUp(layout.GroupRows(chunk, group).size(), SlabRows(layout.type));
  }
  return slabs;
}

ChunkTree::ChunkTree(Range chunks) {
  for (std::int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    const auto i = static_cast<std::size_t>(chunk - chunks.begin);
    below[i] = kept[i] = results;
    const std::int64_t end = chunk + 1;
    for (std::int64_t size = 2; end % size == 0 && end - size >= chunks.begin; size *= 2) {
      --kept[i];
    }
    results = kept[i] + 1;
    nodes = std::max(nodes, results);
  }
}

GpuProductWorkspace::GpuProductWorkspace(const MatrixLayout& layout, std::int64_t rows) {
  if (HasPlanes(layout.type)) {
    for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
      row_slabs += ChunkSlabs(layout, chunk);
    }
    scales = rows * row_slabs * SlabBytes(layout.type);
  }
  nodes = scales;
  if (HasScales(layout.type)) nodes += Aligned(rows * layout.num_chunks() * 4);
  bytes = nodes;
  if (layout.split == Split::kByInput) {
    const ChunkTree tree(layout.chunks);
    // More rows never need less.
    const std::int64_t leaves =
        layout.num_chunks() > 1 ? layout.num_chunks() * std::min(rows, kMostRowsOfSplitChunks) : 0;
    bytes += Aligned(std::max(leaves, (tree.nodes - tree.results) * rows) * layout.n * 4);
  }
}

}  // namespace jubal

#include "kernels/cuda/products.h"

#include "kernels/cuda/float_tile.h"
#include "kernels/cuda/narrow_tile.h"
#include "kernels/cuda/wide_tile.h"
#include "kernels/float_math.h"

namespace jubal {
namespace {

// Neighbouring thread blocks take so many neighbouring blocks of columns, then other rows: what
// runs at the same time shares weights and rows in the cache.
constexpr int kColumnTiles = 8;

std::int32_t Narrow(std::int64_t number) { return static_cast<std::int32_t>(Extent(number)); }

/// Rows of one expert that a thread block takes.
struct RowTile {
  int expert = 0;
  int first = 0;
  int count = 0;
};

__device__ RowTile FindRows(const Products& p, int tile, int most) {
  if (p.offsets == nullptr) {
    return {.expert = 0, .first = tile * most, .count = min(most, p.rows - tile * most)};
  }
  int begin = p.offsets[0];
  for (int expert = 0; expert < p.experts; ++expert) {
    const int end = p.offsets[expert + 1];
    const int tiles = DivideUp(end - begin, most);
    if (tile < tiles) {
      const int first = begin + tile * most;
      return {.expert = expert, .first = first, .count = min(most, end - first)};
    }
    tile -= tiles;
    begin = end;
  }
  return {};
}

/// Puts a sum where it belongs. `column` counts from the first block's first.
__device__ __forceinline__ void Store(const Products& p, int which, int chunk, int row, int column,
                                      float sum) {
  const MatrixOnGpu& matrix = p.matrices[which];
  column -= matrix.column_offset;
  if (column < 0 || column >= matrix.columns) return;
  switch (p.result) {
    case Result::kWhole:
      p.out[which][row * p.out_stride[which] + column] = p.multipliers[which] * sum;
      return;
    case Result::kGated: {
      // Both come to the same thread.
      float* out = p.out[0] + row * p.out_stride[0] + column;
      if (which == 0) {
        *out = sum;
      } else {
        *out = (p.activation == Activation::kSilu ? Silu(*out) : GeluTanh(*out)) * sum;
      }
      return;
    }
    case Result::kPartials: {
      // All chunks of a tree come to the same thread.
      const std::int64_t place = static_cast<std::int64_t>(row) * matrix.columns + column;
      for (int node = p.below[chunk] - 1; node >= p.kept[chunk]; --node) {
        sum = p.nodes[node][place] + sum;
      }
      p.nodes[p.kept[chunk]][place] = sum;
      return;
    }
  }
}

template <class Tile>
struct MultiplyShared {
  RowTile rows;
  alignas(16) typename Tile::Shared tile;
};

/// Grid: (neighbouring tiles of columns, tiles of rows, the other tiles of columns).
template <class Tile>
__global__ void __launch_bounds__(kTileThreads, Tile::kResident)
    MultiplyTiles(const __grid_constant__ Products p) {
  auto& shared = BlockShared<MultiplyShared<Tile>>();
  if (threadIdx.x == 0) shared.rows = FindRows(p, static_cast<int>(blockIdx.y), Tile::kRows);
  __syncthreads();
  const RowTile& rows = shared.rows;
  if (rows.count <= 0) return;

  int block = static_cast<int>(blockIdx.z * kColumnTiles + blockIdx.x) * Tile::kBlocks;
  int first_matrix = 0;
  int matrices = p.result == Result::kGated ? 2 : 1;
  int first_chunk = 0;
  int chunks = p.matrices[0].num_chunks;
  const auto next_matrix = [&](int blocks) {
    return DivideUp(blocks, Tile::kBlocks) * Tile::kBlocks;
  };
  if (p.result == Result::kWhole) {
    while (first_matrix < p.count && block >= p.matrices[first_matrix].blocks) {
      block -= next_matrix(p.matrices[first_matrix++].blocks);
    }
    if (first_matrix == p.count) return;
  } else {
    const int blocks = next_matrix(p.matrices[0].blocks);
    if (p.split_chunks) {
      first_chunk = block / blocks;
      if (first_chunk >= chunks) return;
      chunks = 1;
      block %= blocks;
    }
    if (block >= blocks) return;
  }

#pragma unroll 1
  for (int which = first_matrix; which < first_matrix + matrices; ++which) {
    const MatrixOnGpu& matrix = p.matrices[which];
#pragma unroll 1
    for (int chunk = first_chunk; chunk < first_chunk + chunks; ++chunk) {
      const ChunkOnGpu& place = matrix.chunks[chunk];
      const std::int64_t block_bytes = static_cast<std::int64_t>(place.steps) * (kBlockWidth * 4);
      const std::byte* weights =
          matrix.data + rows.expert * matrix.expert_bytes + place.data + block * block_bytes;
      const auto emit = [&](int row, int column, float sum) {
        row += rows.first;
        if constexpr (Tile::kType == WeightType::kInt8 || Tile::kType == WeightType::kInt4) {
          sum *= p.x.scales[static_cast<std::int64_t>(row) * matrix.num_chunks + chunk];
        }
        Store(p, which, chunk, row, block * kBlockWidth + column, sum);
      };
      if constexpr (Tile::kType == WeightType::kF32) {
        Tile::Multiply(shared.tile,
                       FloatOperands{.k = place.rows,
                                     .weights = reinterpret_cast<const float*>(weights),
                                     .x = p.x.x + rows.first * p.x.x_stride + place.x,
                                     .x_stride = p.x.x_stride,
                                     .rows = rows.count},
                       emit);
      } else {
        const float* scales = nullptr;
        if (matrix.scales != nullptr) {
          scales = matrix.scales + rows.expert * matrix.expert_scales + place.scales +
                   block * kBlockWidth;
        }
        Tile::Multiply(shared.tile,
                       MmaOperands<Tile::kType>{.cut = {.rows = place.rows,
                                                        .first_rows = place.first_rows,
                                                        .group_rows = matrix.group_rows,
                                                        .groups = place.groups},
                                                .weights = reinterpret_cast<const uint4*>(weights),
                                                .block = block_bytes / 16,
                                                .blocks = matrix.blocks - block,
                                                .scales = scales,
                                                .scales_stride = matrix.scales_stride,
                                                .x = p.x.planes + rows.first * p.x.planes_stride +
                                                     static_cast<std::int64_t>(place.slab) *
                                                         SlabOfX<Tile::kType>::kLength,
                                                .x_stride = p.x.planes_stride,
                                                .rows = rows.count},
                       emit);
      }
    }
  }
}

template <class Tile>
void LaunchTiles(const Products& p, Stream& stream) {
  static_assert(sizeof(MultiplyShared<Tile>) <= kMostSharedBytes);
  std::int64_t columns = 0;
  for (int i = 0; i < (p.result == Result::kWhole ? p.count : 1); ++i) {
    columns += DivideUp(p.matrices[i].blocks, Tile::kBlocks);
  }
  if (p.split_chunks) columns *= p.matrices[0].num_chunks;
  // Each expert may have a tile that is not full, but none is empty.
  const std::int64_t rows = p.offsets == nullptr
                                ? DivideUp(p.rows, Tile::kRows)
                                : std::min<std::int64_t>(p.rows, p.rows / Tile::kRows + p.experts);
  Launch(stream, MultiplyTiles<Tile>,
         dim3(Extent(std::min<std::int64_t>(columns, kColumnTiles)), Extent(rows),
              Extent(DivideUp(columns, kColumnTiles))),
         kTileThreads, sizeof(MultiplyShared<Tile>), p);
}

template <WeightType kType>
void LaunchMmaTiles(const Products& p, Stream& stream) {
  // The results' bits are the same in all of them.
  const std::int64_t rows = DivideUp(p.rows, p.experts);
  bool wide = rows > 64;
  for (const MatrixOnGpu& matrix : p.matrices) {
    for (const ChunkOnGpu& chunk : matrix.chunks) {
      wide &= chunk.groups <= 1 || matrix.group_rows <= kRunRows;
    }
  }
  if (rows <= 8) {
    LaunchTiles<NarrowTile<kType, 8>>(p, stream);
  } else if (rows <= 16) {
    LaunchTiles<NarrowTile<kType, 16>>(p, stream);
  } else if (!wide) {
    LaunchTiles<NarrowTile<kType, 32>>(p, stream);
  } else {
    LaunchTiles<WideTile<kType>>(p, stream);
  }
}

constexpr float kLargestActivation = 16383.0f;

__device__ std::uint32_t Bf16Bits(float x) {
  if (x != x) return 0x7fc0;
  const std::uint32_t bits = __float_as_uint(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, half to even
}

struct RowsShared {
  unsigned largest[kTileWarps];
};

/// Grid: (rows, chunks). A thread makes a word of each plane at a time.
template <WeightType kType>
__global__ void __launch_bounds__(kTileThreads)
    PutInPlanes(const float* x, std::int64_t x_stride, const std::int32_t* limit,
                const __grid_constant__ MatrixOnGpu matrix, uint2* planes,
                std::int64_t planes_stride, float* scales) {
  const std::int64_t row = blockIdx.x;
  if (limit != nullptr && row >= *limit) return;
  const int thread = static_cast<int>(threadIdx.x);
  const auto chunk = static_cast<int>(blockIdx.y);
  const ChunkOnGpu& place = matrix.chunks[chunk];
  x += row * x_stride + place.x;

  float scale = 1.0f;
  if constexpr (kType != WeightType::kBf16) {
    // The order of the bits is that of the magnitudes: NaN is above infinity.
    auto& shared = BlockShared<RowsShared>();
    unsigned largest = 0;
    for (int i = thread; i < place.rows; i += kTileThreads) {
      largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
    }
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      largest = max(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
    }
    if (thread % kWarp == 0) shared.largest[thread / kWarp] = largest;
    __syncthreads();
    for (const unsigned of_warp : shared.largest) largest = max(largest, of_warp);
    const bool finite = largest < 0x7f800000u;
    scale = finite ? __uint_as_float(largest) / kLargestActivation : 0.0f;
    if (thread == 0) {
      scales[row * matrix.num_chunks + chunk] = finite ? scale : __uint_as_float(0x7fc00000u);
    }
  }

  const ChunkCut<kType> cut{.rows = place.rows,
                            .first_rows = place.first_rows,
                            .group_rows = matrix.group_rows,
                            .groups = place.groups};
  constexpr int kLength = SlabOfX<kType>::kLength;
  constexpr int kWordRows = kType == WeightType::kBf16 ? 2 : 4;
  planes += row * planes_stride + static_cast<std::int64_t>(place.slab) * kLength;
  const int slabs = cut.groups == 0 ? 0 : cut.FirstSlab(cut.groups - 1) + cut.Slabs(cut.groups - 1);
  const int first_slabs = cut.Slabs(0);
  const int group_slabs = max(1, DivideUp(cut.group_rows, ChunkCut<kType>::kRowsPerSlab));
  for (int i = thread; i < slabs * kLength; i += kTileThreads) {
    const int slab = i / kLength;
    const int group = slab < first_slabs ? 0 : 1 + (slab - first_slabs) / group_slabs;
    const int k = ((slab - cut.FirstSlab(group)) * kLength + i % kLength) * kWordRows;
    const int rows = cut.Rows(group);
    const float* from = x + (group == 0 ? 0 : cut.first_rows + (group - 1) * cut.group_rows) + k;
    uint2 words{0, 0};
#pragma unroll
    for (int j = 0; j < kWordRows; ++j) {
      const float value = k + j < rows ? from[j] : 0.0f;
      if constexpr (kType == WeightType::kBf16) {
        const std::uint32_t high = Bf16Bits(value);
        const std::uint32_t low = Bf16Bits(value - __uint_as_float(high << 16));
        words.x |= high << (16 * j);
        words.y |= low << (16 * j);
      } else if (scale > 0.0f) {
        constexpr int kMost = static_cast<int>(kLargestActivation);
        const int a = max(-kMost, min(kMost, __float2int_rn(value / scale)));
        words.x |= (static_cast<std::uint32_t>(a >> 7) & 0xffu) << (8 * j);
        words.y |= (static_cast<std::uint32_t>(a) & 0x7fu) << (8 * j);
      }
    }
    planes[i] = words;
  }
}

template <WeightType kType>
void LaunchPlanes(ConstTensorView x, const MatrixOnGpu& matrix, RowsOnGpu& rows, uint2* planes,
                  float* scales, Stream& stream) {
  Launch(stream, PutInPlanes<kType>, dim3(Extent(x.size(0)), Extent(matrix.num_chunks)),
         kTileThreads, sizeof(RowsShared), DeviceData<float>(x), x.row_stride(), rows.limit, matrix,
         planes, rows.planes_stride, scales);
}

/// The subtrees that the chunks' products add up to.
struct Subtrees {
  const float* leaves = nullptr;  // [chunks][elements]
  std::int64_t elements = 0;
  std::int64_t n = 0;
  float* out = nullptr;  // [subtrees][elements]
  std::int32_t first[kChunks] = {};
  std::int32_t chunks[kChunks] = {};
  const std::int32_t* limit = nullptr;
};

/// Grid: (elements, subtrees).
__global__ void __launch_bounds__(kTileThreads) AddUp(const __grid_constant__ Subtrees p) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  const std::int64_t elements = p.limit == nullptr ? p.elements : *p.limit * p.n;
  if (i >= elements) return;
  const auto subtree = static_cast<int>(blockIdx.y);
  const int chunks = p.chunks[subtree];
  const float* leaves = p.leaves + p.first[subtree] * p.elements + i;
  float sums[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) sums[c] = c < chunks ? leaves[c * p.elements] : 0.0f;
#pragma unroll
  for (int half = 1; half < kChunks; half *= 2) {
    if (half >= chunks) break;
#pragma unroll
    for (int c = 0; c < kChunks; c += 2 * half) sums[c] += sums[c + half];
  }
  p.out[subtree * p.elements + i] = sums[0];
}

}  // namespace

MatrixOnGpu::MatrixOnGpu(const PackedMatrix& matrix) {
  const MatrixLayout& layout = matrix.layout;
  const MatrixLayout& strides = matrix.strides();
  CHECK(matrix.device == Device::kCuda || layout.WeightBytes() == 0);
  data = matrix.data;
  scales = matrix.scales;
  expert_bytes = strides.ExpertBytes();
  expert_scales = strides.ExpertScales();
  scales_stride = Narrow(strides.stored_columns());
  group_rows = Narrow(layout.group_rows);
  blocks = Narrow(layout.blocks().size());
  column_offset = Narrow(layout.column_offset());
  columns = Narrow(layout.columns.size());
  num_chunks = Narrow(layout.num_chunks());
  std::int64_t chunk_data = 0;
  std::int64_t chunk_scales = 0;
  std::int64_t slab = 0;
  for (std::int64_t i = 0; i < layout.num_chunks(); ++i) {
    const std::int64_t chunk = layout.chunks.begin + i;
    const std::int64_t groups = layout.ChunkGroups(chunk);
    chunks[i] = {.data = chunk_data,
                 .scales = chunk_scales,
                 .x = Narrow(layout.ChunkRows(chunk).begin - layout.InputRows().begin),
                 .slab = Narrow(slab),
                 .rows = Narrow(layout.ChunkRows(chunk).size()),
                 .first_rows = groups == 0 ? 0 : Narrow(layout.GroupRows(chunk, 0).size()),
                 .groups = Narrow(groups),
                 .steps = Narrow(layout.ChunkSteps(chunk))};
    chunk_data += layout.BlockBytes(chunk) * strides.blocks().size();
    if (HasScales(layout.type)) chunk_scales += groups * strides.stored_columns();
    slab += ChunkSlabs(layout, chunk);
  }
}

RowsOnGpu EnqueueRows(ConstTensorView x, const PackedMatrix& matrix, std::byte* workspace,
                      const std::int32_t* limit, Stream& stream) {
  const MatrixLayout& layout = matrix.layout;
  RowsOnGpu rows{.x = DeviceData<float>(x), .x_stride = x.row_stride(), .limit = limit};
  if (!HasPlanes(layout.type)) return rows;
  const GpuProductWorkspace places(layout, x.size(0));
  auto* const planes = reinterpret_cast<uint2*>(workspace);
  auto* const scales = reinterpret_cast<float*>(workspace + places.scales);
  rows.planes = planes;
  rows.planes_stride = places.row_slabs * SlabBytes(layout.type) / 8;
  rows.scales = scales;
  const MatrixOnGpu on_gpu(matrix);
  switch (layout.type) {
    case WeightType::kBf16:
      LaunchPlanes<WeightType::kBf16>(x, on_gpu, rows, planes, scales, stream);
      break;
    case WeightType::kInt8:
      LaunchPlanes<WeightType::kInt8>(x, on_gpu, rows, planes, scales, stream);
      break;
    case WeightType::kInt4:
      LaunchPlanes<WeightType::kInt4>(x, on_gpu, rows, planes, scales, stream);
      break;
    case WeightType::kF32:
      break;
  }
  return rows;
}

void EnqueueProducts(const Products& products, Stream& stream) {
  switch (products.type) {
    case WeightType::kF32: {
      const MatrixOnGpu& first = products.matrices[0];
      if (products.count == 1 && first.blocks == 1 && first.column_offset + first.columns <= 8) {
        LaunchTiles<FloatTile<8>>(products, stream);
      } else {
        LaunchTiles<FloatTile<kBlockWidth>>(products, stream);
      }
      return;
    }
    case WeightType::kBf16:
      LaunchMmaTiles<WeightType::kBf16>(products, stream);
      return;
    case WeightType::kInt8:
      LaunchMmaTiles<WeightType::kInt8>(products, stream);
      return;
    case WeightType::kInt4:
      LaunchMmaTiles<WeightType::kInt4>(products, stream);
      return;
  }
}

void EnqueuePartials(TensorView out, const PackedMatrix& down, const RowsOnGpu& x,
                     const std::int32_t* offsets, std::byte* workspace, Stream& stream) {
  const MatrixLayout& layout = down.layout;
  const std::int64_t rows = out.size(1);
  const std::int64_t n = out.size(2);
  if (rows == 0 || n == 0 || layout.num_chunks() == 0) return;
  Products products{.type = layout.type,
                    .x = x,
                    .rows = Narrow(rows),
                    .experts = Narrow(layout.num_experts()),
                    .offsets = offsets,
                    .result = Result::kPartials};
  products.matrices[0] = MatrixOnGpu(down);
  auto* const nodes = reinterpret_cast<float*>(workspace + GpuProductWorkspace(layout, rows).nodes);
  const ChunkTree tree(layout.chunks);
  products.split_chunks = layout.num_chunks() > 1 && rows <= kMostRowsOfSplitChunks;
  for (int i = 0; i < static_cast<int>(layout.num_chunks()); ++i) {
    const auto chunk = static_cast<std::size_t>(i);
    products.below[i] = products.split_chunks ? i : tree.below[chunk];
    products.kept[i] = products.split_chunks ? i : tree.kept[chunk];
    products.nodes[i] = products.split_chunks ? nodes + i * rows * n
                        : i < tree.results    ? DeviceData<float>(out) + i * rows * n
                                              : nodes + (i - tree.results) * rows * n;
  }
  EnqueueProducts(products, stream);
  if (!products.split_chunks) return;

  const std::vector<Subtree> subtrees = MaximalSubtrees(layout.chunks);
  Subtrees sums{.leaves = nodes,
                .elements = rows * n,
                .n = n,
                .out = DeviceData<float>(out),
                .limit = x.limit};
  for (std::size_t s = 0; s < subtrees.size(); ++s) {
    sums.first[s] = subtrees[s].first_chunk - Narrow(layout.chunks.begin);
    sums.chunks[s] = subtrees[s].num_chunks;
  }
  Launch(stream, AddUp, dim3(Extent(DivideUp(rows * n, kTileThreads)), Extent(out.size(0))),
         kTileThreads, 0, sums);
}

}  // namespace jubal

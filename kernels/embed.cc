#include "kernels/embed.h"

#include <algorithm>
#include <bit>

namespace jubal {
namespace {

float Widen(float value) { return value; }
float Widen(std::uint16_t bf16) { return std::bit_cast<float>(std::uint32_t{bf16} << 16); }

/// w · scale, and that times the multiplier.
void CopyInt8Column(const Embed& op, std::int64_t column, float* out) {
  const MatrixLayout& layout = op.table.layout;
  const MatrixLayout& strides = op.table.strides();
  const std::int64_t block = column / kBlockColumns - layout.blocks().begin;
  const std::byte* step = op.table.data + block * layout.BlockBytes(0) + column % kBlockColumns * 4;
  const float* scale = op.table.scales + block * kBlockColumns + column % kBlockColumns;
  for (std::int64_t group = 0; group < layout.ChunkGroups(0); ++group) {
    const Range rows = layout.GroupRows(0, group);
    for (std::int64_t k = 0; k < rows.size(); ++k) {
      const int weight = std::to_integer<int>(step[k / 4 * kBlockColumns * 4 + k % 4]) - 128;
      *out++ = op.multiplier * (static_cast<float>(weight) * *scale);
    }
    step += (rows.size() + 3) / 4 * kBlockColumns * 4;
    scale += strides.stored_columns();
  }
}

/// One column of the packed matrix: the token's row of the table.
template <class T>
void CopyColumn(const Embed& op, std::int64_t column, float* out) {
  const MatrixLayout& layout = op.table.layout;
  const std::int64_t per_step = RowsPerStep(layout.type);
  const std::int64_t block = column / kBlockColumns - layout.blocks().begin;
  const T* first = reinterpret_cast<const T*>(op.table.data + block * layout.BlockBytes(0)) +
                   column % kBlockColumns * per_step;
  for (std::int64_t k = 0; k < layout.k; ++k) {
    const T value = first[k / per_step * kBlockColumns * per_step + k % per_step];
    out[k] = op.multiplier * Widen(value);
  }
}

}  // namespace

void Check(const Embed& op) {
  const MatrixLayout& layout = op.table.layout;
  CHECK(op.out.dtype() == DType::kF32 && op.token_ids.dtype() == DType::kI32);
  CHECK(op.token_ids.rank() == 1 && op.token_ids.dense());
  CHECK(op.out.shape() == (Shape{op.token_ids.size(0), layout.k}));
  CHECK(layout.split == Split::kByOutput);
  CHECK(layout.type != WeightType::kInt4);
  CHECK_EQ(layout.num_experts(), 1);
  CHECK(layout.columns.empty() || !op.table.empty());
}

void RunOnCpu(const Embed& op) {
  const MatrixLayout& layout = op.table.layout;
  const std::int32_t* ids = op.token_ids.data<std::int32_t>();
  const std::int64_t tokens = op.token_ids.size(0);
#pragma omp parallel for if (tokens > 8)
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* out = op.out.row<float>(t);
    CHECK(ids[t] >= 0 && ids[t] < layout.n);
    if (ids[t] < layout.columns.begin || ids[t] >= layout.columns.end) {
      std::fill_n(out, layout.k, 0.0f);
    } else if (layout.type == WeightType::kF32) {
      CopyColumn<float>(op, ids[t], out);
    } else if (layout.type == WeightType::kBf16) {
      CopyColumn<std::uint16_t>(op, ids[t], out);
    } else {
      CopyInt8Column(op, ids[t], out);
    }
  }
}

}  // namespace jubal

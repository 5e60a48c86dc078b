#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/check.h"
#include "kernels/gated_experts.h"
#include "kernels/matmul.h"

namespace jubal {
namespace {

/// One column of one chunk, unpacked: what the sums run over.
struct Column {
  std::vector<float> weights;  // [rows of the chunk]
  std::vector<float> scales;   // [groups of the chunk], of integers
};

/// `expert` is local, `chunk` and `column` are global.
Column UnpackColumn(const PackedMatrix& matrix, std::int64_t expert, std::int64_t chunk,
                    std::int64_t column) {
  const MatrixLayout& layout = matrix.layout;
  const MatrixLayout& strides = matrix.strides();
  const std::byte* data = matrix.data + expert * strides.ExpertBytes();
  const float* scales = matrix.scales + expert * strides.ExpertScales();
  for (std::int64_t before = layout.chunks.begin; before < chunk; ++before) {
    data += layout.BlockBytes(before) * strides.blocks().size();
    scales += layout.ChunkGroups(before) * HasScales(layout.type) * strides.stored_columns();
  }
  const std::int64_t stored = column - layout.blocks().begin * kBlockColumns;
  data += stored / kBlockColumns * layout.BlockBytes(chunk);

  Column unpacked;
  const std::int64_t rows_per_step = RowsPerStep(layout.type);
  for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
    const std::int64_t rows = layout.GroupRows(chunk, group).size();
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::byte* step =
          data + (row / rows_per_step * kBlockColumns + stored % kBlockColumns) * 4;
      const std::int64_t place = row % rows_per_step;
      switch (layout.type) {
        case WeightType::kF32: {
          float weight;
          std::memcpy(&weight, step, sizeof(weight));
          unpacked.weights.push_back(weight);
          break;
        }
        case WeightType::kBf16: {
          std::uint16_t bits;
          std::memcpy(&bits, step + place * 2, sizeof(bits));
          unpacked.weights.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
          break;
        }
        case WeightType::kInt8:
          unpacked.weights.push_back(static_cast<float>(std::to_integer<int>(step[place]) - 128));
          break;
        case WeightType::kInt4: {
          const int both = std::to_integer<int>(step[place % 4]);
          unpacked.weights.push_back(static_cast<float>((place < 4 ? both & 15 : both >> 4) - 8));
          break;
        }
      }
    }
    data += (rows + rows_per_step - 1) / rows_per_step * kBlockColumns * 4;
    if (HasScales(layout.type)) {
      unpacked.scales.push_back(scales[group * strides.stored_columns() + stored]);
    }
  }
  return unpacked;
}

/// The product of one row's part in one chunk (x, its first element) with one column.
float FloatProduct(const Column& column, const float* x) {
  float sum = 0.0f;
  for (std::size_t k = 0; k < column.weights.size(); ++k) {
    sum = std::fma(x[k], column.weights[k], sum);
  }
  return sum;
}

struct QuantisedRow {
  float scale = 0.0f;  // NaN where x is not finite
  std::vector<std::int64_t> values;
};

QuantisedRow Quantise(const float* x, std::int64_t count) {
  QuantisedRow row{.scale = 0.0f,
                   .values = std::vector<std::int64_t>(static_cast<std::size_t>(count))};
  float largest = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) {
      row.scale = std::nanf("");
      return row;
    }
    largest = std::max(largest, std::fabs(x[i]));
  }
  row.scale = largest / 16383.0f;
  if (row.scale == 0.0f) return row;
  for (std::int64_t i = 0; i < count; ++i) {
    const float ratio = std::nearbyint(x[i] / row.scale);
    row.values[static_cast<std::size_t>(i)] =
        static_cast<std::int64_t>(std::fmin(std::fmax(ratio, -16383.0f), 16383.0f));
  }
  return row;
}

float IntegerProduct(const MatrixLayout& layout, std::int64_t chunk, const Column& column,
                     const QuantisedRow& x) {
  float total = 0.0f;
  std::size_t k = 0;
  for (std::int64_t group = 0; group < layout.ChunkGroups(chunk); ++group) {
    const std::int64_t rows = layout.GroupRows(chunk, group).size();
    float flushes = 0.0f;
    std::int64_t dot = 0;
    for (std::int64_t row = 0; row < rows; ++row, ++k) {
      dot += x.values[k] * static_cast<std::int64_t>(column.weights[k]);
      if (row % 512 == 511 || row == rows - 1) {
        flushes += static_cast<float>(dot);
        dot = 0;
      }
    }
    total += flushes * column.scales[static_cast<std::size_t>(group)];
  }
  return total * x.scale;
}

/// y[row] for all columns owned, of one chunk: [rows, columns].
std::vector<float> ChunkProduct(const PackedMatrix& matrix, std::int64_t expert, std::int64_t chunk,
                                ConstTensorView x) {
  const MatrixLayout& layout = matrix.layout;
  const Range rows = layout.ChunkRows(chunk);
  const std::int64_t first = rows.begin - layout.InputRows().begin;
  std::vector<QuantisedRow> quantised;
  if (HasScales(layout.type)) {
    for (std::int64_t r = 0; r < x.size(0); ++r) {
      quantised.push_back(Quantise(x.row<float>(r) + first, rows.size()));
    }
  }
  std::vector<float> y(static_cast<std::size_t>(x.size(0) * layout.columns.size()));
  for (std::int64_t c = 0; c < layout.columns.size(); ++c) {
    const Column column = UnpackColumn(matrix, expert, chunk, layout.columns.begin + c);
    for (std::int64_t r = 0; r < x.size(0); ++r) {
      y[static_cast<std::size_t>(r * layout.columns.size() + c)] =
          HasScales(layout.type)
              ? IntegerProduct(layout, chunk, column, quantised[static_cast<std::size_t>(r)])
              : FloatProduct(column, x.row<float>(r) + first);
    }
  }
  return y;
}

void WholeProduct(const PackedMatrix& matrix, std::int64_t expert, ConstTensorView x,
                  float multiplier, TensorView out) {
  const std::vector<float> y = ChunkProduct(matrix, expert, 0, x);
  for (std::int64_t r = 0; r < out.size(0); ++r) {
    for (std::int64_t c = 0; c < out.size(1); ++c) {
      out.row<float>(r)[c] = multiplier * y[static_cast<std::size_t>(r * out.size(1) + c)];
    }
  }
}

/// The sum over a subtree: left half + right half.
std::vector<float> SubtreeProduct(const PackedMatrix& matrix, std::int64_t expert, Subtree subtree,
                                  ConstTensorView x) {
  if (subtree.num_chunks == 1) return ChunkProduct(matrix, expert, subtree.first_chunk, x);
  const int half = subtree.num_chunks / 2;
  std::vector<float> left = SubtreeProduct(matrix, expert, {subtree.first_chunk, half}, x);
  const std::vector<float> right =
      SubtreeProduct(matrix, expert, {subtree.first_chunk + half, half}, x);
  for (std::size_t i = 0; i < left.size(); ++i) left[i] += right[i];
  return left;
}

/// Rows [first, first + x.size(0)) of every plane of `out`.
void PartialProducts(const PackedMatrix& matrix, std::int64_t expert, ConstTensorView x,
                     std::int64_t first, TensorView out) {
  const std::vector<Subtree> subtrees = MaximalSubtrees(matrix.layout.chunks);
  for (std::size_t s = 0; s < subtrees.size(); ++s) {
    const std::vector<float> y = SubtreeProduct(matrix, expert, subtrees[s], x);
    float* plane = out.row<float>(static_cast<std::int64_t>(s)) + first * out.size(2);
    std::copy(y.begin(), y.end(), plane);
  }
}

}  // namespace

void RunReference(const Matmul& op) { WholeProduct(op.weight, 0, op.x, op.multiplier, op.out); }

void RunReference(const MatmulPartials& op) { PartialProducts(op.weight, 0, op.x, 0, op.out); }

void RunReference(const Matmuls& op) {
  for (const Matmul& product : op.products) RunReference(product);
}

void RunReference(const GatedExperts& op) {
  const std::int32_t* offsets = op.offsets.data<std::int32_t>();
  for (std::int64_t e = 0; e < op.gate.layout.num_experts(); ++e) {
    const std::int64_t first = offsets[e];
    const std::int64_t rows = offsets[e + 1] - first;
    const std::int64_t width = op.gate.layout.columns.size();
    const ConstTensorView x = op.x.Rows(first, rows);
    const TensorView hidden = op.hidden.Rows(first, rows);
    std::vector<float> up(static_cast<std::size_t>(rows * width));
    WholeProduct(op.gate, e, x, 1.0f, hidden);
    WholeProduct(op.up, e, x, 1.0f,
                 {reinterpret_cast<std::byte*>(up.data()), DType::kF32, {rows, width}});
    for (std::int64_t r = 0; r < rows; ++r) {
      float* gate = hidden.row<float>(r);
      ApplyGatedActivation(op.activation, gate, up.data() + r * width, width, gate);
    }
    PartialProducts(op.down, e, hidden, first, op.out);
  }
}

}  // namespace jubal

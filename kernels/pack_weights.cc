#include "kernels/pack_weights.h"

#include <bit>
#include <cstring>

#include "kernels/check.h"
#include "kernels/pack_weights_forms.h"

namespace jubal {
namespace {

bool Holds(Range outer, Range inner) {
  return inner.empty() || (outer.begin <= inner.begin && inner.end <= outer.end);
}

/// Columns of y that are stored and no padding.
Range StoredOutputs(const MatrixLayout& layout) {
  const Range blocks = layout.blocks();
  return {blocks.begin * kBlockColumns, std::min(layout.n, blocks.end * kBlockColumns)};
}

/// Whether no step of the packed matrix has rows on both sides of k = `row`.
bool IsBetweenSteps(const MatrixLayout& layout, std::int64_t row) {
  for (std::int64_t chunk = layout.chunks.begin; chunk < layout.chunks.end; ++chunk) {
    const StepMap steps = StepMapOf(layout, chunk);
    if (row <= steps.rows.begin || row >= steps.rows.end) continue;
    return steps.RowsOf(steps.StepOf(row)).begin == row;
  }
  return true;
}

void CheckFlag(TensorView broken) {
  CHECK(broken.empty() || (broken.dtype() == DType::kI32 && broken.shape() == (Shape{1})));
}

void Report(TensorView broken, bool found) {
  if (found && !broken.empty()) broken.data<std::int32_t>()[0] = 1;
}

}  // namespace

Range StoredRows(const MatrixLayout& layout, bool output_major) {
  return output_major ? StoredOutputs(layout) : layout.InputRows();
}

Range StoredColumns(const MatrixLayout& layout, bool output_major) {
  return StoredRows(layout, !output_major);
}

std::int64_t SlabEnd(const MatrixLayout& layout, bool output_major, std::int64_t begin,
                     std::int64_t max_rows) {
  std::int64_t end = std::min(begin + max_rows, output_major ? layout.n : layout.k);
  if (!output_major) {
    while (!IsBetweenSteps(layout, end)) --end;
  }
  CHECK_LT(begin, end);
  return end;
}

StepMap StepMapOf(const MatrixLayout& layout, std::int64_t chunk) {
  StepMap steps;
  steps.rows = layout.ChunkRows(chunk);
  steps.rows_per_step = RowsPerStep(layout.type);
  const auto steps_of = [&](std::int64_t rows) { return DivideUp(rows, steps.rows_per_step); };
  steps.second = steps.rows.end;
  if (HasScales(layout.type)) {
    steps.group_rows = layout.group_rows;
    steps.group_steps = steps_of(layout.group_rows);
    const std::int64_t group = steps.rows.begin / layout.group_rows;
    steps.second = std::min(steps.rows.end, (group + 1) * layout.group_rows);
  }
  steps.first_steps = steps_of(steps.second - steps.rows.begin);
  return steps;
}

void Check(const PackWeights& op) {
  const MatrixLayout& layout = op.layout;
  const UnpackedSlab& from = op.source;
  CHECK(op.data.dtype() == DType::kU8 && op.data.dense());
  CHECK_EQ(op.data.bytes(), layout.WeightBytes());
  CHECK(op.expert >= 0 && op.expert < layout.num_experts());
  CHECK(!HasScales(layout.type) || layout.group_rows > 0);
  const Range whole{0, from.output_major ? layout.n : layout.k};
  CHECK(Holds(whole, from.rows));
  CHECK(Holds({0, from.output_major ? layout.k : layout.n}, from.columns));
  CHECK(Holds(from.columns, StoredColumns(layout, from.output_major)));
  if (!from.output_major) {
    CHECK(IsBetweenSteps(layout, from.rows.begin) && IsBetweenSteps(layout, from.rows.end));
  }
  CheckFlag(op.broken);
}

void RunOnCpu(const PackWeights& op) {
  ForEachChunk(op, [&](const SlabOfChunk& slab) {
    bool broken = false;
#pragma omp parallel for reduction(|| : broken)
    for (std::int64_t column = slab.columns.begin; column < slab.columns.end; ++column) {
      std::byte* const out = slab.data +
                             (column / kBlockColumns - slab.FirstBlock()) * slab.block_bytes +
                             column % kBlockColumns * 4;
      for (std::int64_t step = slab.steps.begin; step < slab.steps.end; ++step) {
        const std::uint32_t word = PackedWord(slab, step, column, broken);
        std::memcpy(out + step * kBlockStepBytes, &word, sizeof(word));
      }
    }
    Report(op.broken, broken);
  });
}

void Check(const PackScales& op) {
  const MatrixLayout& layout = op.layout;
  CHECK(HasScales(layout.type) && layout.group_rows > 0);
  CHECK(op.scales.dtype() == DType::kF32 && op.scales.dense());
  CHECK_EQ(op.scales.bytes(), layout.ScaleBytes());
  CHECK(op.expert >= 0 && op.expert < layout.num_experts());
  CHECK(Holds({0, DivideUp(layout.k, layout.group_rows)}, op.groups));
  CheckFlag(op.broken);
}

void RunOnCpu(const PackScales& op) {
  ForEachChunk(op, [&](const ScalesOfChunk& of) {
    bool broken = false;
    for (std::int64_t group = 0; group < of.groups; ++group) {
      for (std::int64_t column = 0; column < of.stored; ++column) {
        of.scales[group * of.stored + column] =
            std::bit_cast<float>(PackedScale(of, group, column, broken));
      }
    }
    Report(op.broken, broken);
  });
}

}  // namespace jubal

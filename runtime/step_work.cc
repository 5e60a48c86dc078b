#include "runtime/step_work.h"

#include <algorithm>

#include "kernels/check.h"

namespace jubal {
namespace {

/// One column of one expert's part of the matrix, with its scales.
std::int64_t ColumnBytes(const MatrixLayout& layout) {
  const std::int64_t columns = layout.stored_columns();
  if (columns == 0) return 0;
  return (layout.ExpertBytes() + layout.ExpertScales() * std::int64_t{sizeof(float)}) / columns;
}

/// A block is read up to its last column that the rank owns.
std::int64_t MatrixBytes(const MatrixLayout& layout) {
  if (layout.columns.empty()) return 0;
  return ColumnBytes(layout) * (layout.column_offset() + layout.columns.size());
}

}  // namespace

StepWork::StepWork(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                   KvType kv_type)
    : data_group_(seat.data),
      experts_(source.model().experts),
      own_experts_(OwnedExperts(plan, static_cast<int>(experts_), seat.expert)),
      own_vocabulary_(OwnedVocabulary(source.model().vocabulary, seat.tensor, plan.tensor)),
      expert_bytes_(static_cast<std::size_t>(source.model().layers), 0) {
  const ModelDescription& model = source.model();
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) {
      const std::int64_t bytes = spec.k * std::int64_t{sizeof(float)};
      (spec.layer < 0 ? output_bytes_ : dense_bytes_) += bytes;
      continue;
    }
    const MatrixLayout layout = LayoutOf(spec, source.format(i), model, plan, seat);
    const std::int64_t bytes = MatrixBytes(layout);
    const std::int64_t weights = spec.k * spec.n;
    if (spec.role == WeightRole::kEmbedding) token_bytes_ = ColumnBytes(layout);
    if (spec.role == WeightRole::kOutput ||
        (spec.role == WeightRole::kEmbedding && model.tied_output)) {
      output_bytes_ += bytes;
      output_weights_ = weights;
    } else if (spec.expert_stack) {
      expert_bytes_[static_cast<std::size_t>(spec.layer)] += bytes;
      token_weights_ += model.top_k * weights;
    } else if (spec.layer >= 0) {
      dense_bytes_ += bytes;
      token_weights_ += weights;
    }
  }
  const KvLayer kv{.heads = OwnedKvHeads(model, seat.tensor, plan.tensor).size(),
                   .head_dim = model.head_dim,
                   .type = kv_type};
  kv_bytes_ = kv.PageBytes() / kPageTokens * model.layers;
}

std::int64_t StepWork::Bytes(const StepPlan& step, std::span<const std::uint8_t> touched) const {
  CHECK_EQ(touched.size(), expert_bytes_.size() * static_cast<std::size_t>(experts_));
  std::int64_t bytes = 0;
  for (std::size_t layer = 0; layer < expert_bytes_.size(); ++layer) {
    const auto experts = touched.subspan(layer * static_cast<std::size_t>(experts_),
                                         static_cast<std::size_t>(experts_));
    bytes += expert_bytes_[layer] * std::count_if(experts.begin() + own_experts_.begin,
                                                  experts.begin() + own_experts_.end,
                                                  [](std::uint8_t met) { return met != 0; });
  }
  const GroupStep& mine = step.groups[static_cast<std::size_t>(data_group_)];
  if (mine.tokens.empty()) return bytes;
  bytes += dense_bytes_;
  if (!mine.logit_rows.empty()) bytes += output_bytes_;
  for (const TokenId token : mine.tokens) {
    if (token >= own_vocabulary_.begin && token < own_vocabulary_.end) bytes += token_bytes_;
  }
  std::vector<std::int64_t> lengths(mine.page_table.size() /
                                    static_cast<std::size_t>(mine.max_pages));
  for (std::size_t row = 0; row < mine.tokens.size(); ++row) {
    std::int64_t& length = lengths[static_cast<std::size_t>(mine.sequences[row])];
    length = std::max<std::int64_t>(length, mine.positions[row] + 1);
    bytes += kv_bytes_;  // written
  }
  for (const std::int64_t length : lengths) bytes += length * kv_bytes_;
  return bytes;
}

std::int64_t StepWork::Operations(const StepPlan& step) const {
  std::int64_t products = 0;
  for (const GroupStep& group : step.groups) {
    products += group.num_tokens() * token_weights_ +
                static_cast<std::int64_t>(group.logit_rows.size()) * output_weights_;
  }
  return 2 * products;
}

}  // namespace jubal

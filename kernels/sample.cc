#include "kernels/sample.h"

#include <Random123/philox.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/float_math.h"

namespace jubal {
namespace {

constexpr int kLanes = 8;
constexpr std::int64_t kFirstSorted = 256;  // candidates put in order at first

float Max(const float* x, std::int64_t n) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  float max = *std::max_element(lanes, lanes + kLanes);
  for (; i < n; ++i) max = std::max(max, x[i]);
  return max;
}

/// What ln softmax takes from every logit of a row: max, then ln Σ e^(logit − max).
struct Normaliser {
  float max = 0.0f;
  double log_sum = 0.0;

  /// False when a logit of the row is infinite or not a number.
  bool finite() const { return std::isfinite(log_sum); }
  float LogProbOf(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - max - log_sum);
  }
};

Normaliser NormaliserOf(const float* logits, std::int64_t n) {
  const float max = Max(logits, n);
  // Term i goes to lane i mod 8, the lanes are added in order.
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += FastExp(logits[i + lane] - max);
  }
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += FastExp(logits[i] - max);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return {max, std::isfinite(max) ? std::log(sum) : std::numeric_limits<double>::quiet_NaN()};
}

/// In [0, 1), 53 bits.
double Uniform(std::uint64_t seed, std::uint64_t position) {
  using Philox = r123::Philox4x32;
  const Philox::ctr_type counter = {
      {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), 0, 0}};
  const Philox::key_type key = {
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  const Philox::ctr_type random = Philox()(counter, key);
  const std::uint64_t bits = (std::uint64_t{random[1]} << 32) | random[0];
  return std::ldexp(static_cast<double>(bits >> 11), -53);
}

void Penalise(const SampleRow& row, std::int64_t vocabulary, float* logits) {
  const auto at = [&](std::int32_t id) -> float& {
    CHECK(id >= 0 && id < vocabulary);
    return logits[id];
  };
  for (const std::int32_t id : row.seen) {
    float& logit = at(id);
    logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  }
  for (std::size_t i = 0; i < row.produced.size(); ++i) {
    at(row.produced[i]) -=
        row.presence_penalty + row.frequency_penalty * static_cast<float>(row.produced_counts[i]);
  }
}

/// Sorting keys ascending sorts candidates by (logit descending, id ascending).
std::uint64_t KeyOf(float logit, std::int64_t id) {
  const auto bits = std::bit_cast<std::uint32_t>(logit + 0.0f);  // −0 ties with 0
  const std::uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (std::uint64_t{~ascending} << 32) | static_cast<std::uint64_t>(id);
}

std::int32_t IdOf(std::uint64_t key) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(key));
}

/// The first of the candidates id_at(0) … id_at(count − 1) up to which the weights add up to more
/// than u · total, where `total` is the sum of all of them in that order.
template <class IdAt>
std::int32_t Draw(const float* weights, std::int64_t count, const IdAt& id_at, double total,
                  double u) {
  double sum = 0.0;
  std::int32_t last = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t id = id_at(i);
    if (weights[id] == 0.0f) continue;
    sum += weights[id];
    last = id;
    if (sum > u * total) break;
  }
  return last;  // without a break: u · total was rounded up to total
}

/// No filter: the candidates are all tokens, ids ascending.
std::int32_t DrawFromAll(const float* weights, std::int64_t vocabulary, double u) {
  double total = 0.0;
  for (std::int64_t id = 0; id < vocabulary; ++id) total += weights[id];
  const auto id_at = [](std::int64_t i) { return static_cast<std::int32_t>(i); };
  return Draw(weights, vocabulary, id_at, total, u);
}

/// The candidates are the first few by (logit descending, id ascending): every filter keeps a
/// prefix of that order. `keys` holds the keys of all tokens, ids ascending.
std::int32_t DrawFiltered(const float* weights, std::int64_t vocabulary, const SampleRow& row,
                          double u, std::uint64_t* keys) {
  const auto id_at = [&](std::int64_t i) { return IdOf(keys[i]); };
  std::int64_t limit = vocabulary;
  std::int64_t sorted = 0;
  if (row.top_k > 0 && row.top_k < vocabulary) {
    limit = sorted = row.top_k;
    std::nth_element(keys, keys + limit, keys + vocabulary);
    std::sort(keys, keys + limit);
  }
  double whole = 0.0;  // what top_p is a share of: the weights that top_k keeps
  for (std::int64_t i = 0; i < limit; ++i) whole += weights[id_at(i)];

  double total = 0.0;
  std::int64_t count = 0;
  for (; count < limit; ++count) {
    if (count == sorted) {  // puts a doubling prefix in order, since most draws need a short one
      sorted = std::min(limit, std::max(kFirstSorted, 2 * sorted));
      if (sorted < limit) std::nth_element(keys + count, keys + sorted, keys + limit);
      std::sort(keys + count, keys + sorted);
    }
    if (count > 0) {
      if (row.top_p < 1.0f && total >= row.top_p * whole) break;
      if (weights[id_at(count)] < row.min_p) break;
    }
    total += weights[id_at(count)];
  }
  return Draw(weights, count, id_at, total, u);
}

std::int32_t FirstOf(const float* logits, std::int64_t vocabulary, float value) {
  return static_cast<std::int32_t>(std::find(logits, logits + vocabulary, value) - logits);
}

/// Whether the row's token is that of the largest logit as it is.
bool TakesLargest(const SampleRow& row) {
  return row.temperature == 0.0f && row.seen.empty() && row.produced.empty();
}

std::int32_t SampleOne(const float* raw, std::int64_t vocabulary, const SampleRow& row,
                       float* adjusted, std::uint64_t* keys) {
  std::copy_n(raw, vocabulary, adjusted);
  Penalise(row, vocabulary, adjusted);
  const float max = Max(adjusted, vocabulary);
  if (row.temperature == 0.0f) return FirstOf(adjusted, vocabulary, max);
  const bool filtered = row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
  if (filtered) {
    for (std::int64_t id = 0; id < vocabulary; ++id) keys[id] = KeyOf(adjusted[id], id);
  }
  float* weights = adjusted;  // probabilities relative to the most probable token
  for (std::int64_t id = 0; id < vocabulary; ++id) {
    weights[id] = FastExp((adjusted[id] - max) / row.temperature);
  }
  const double u = Uniform(row.seed, row.position);
  return filtered ? DrawFiltered(weights, vocabulary, row, u, keys)
                  : DrawFromAll(weights, vocabulary, u);
}

std::int64_t AdjustedBytes(std::int64_t vocabulary) { return (vocabulary * 4 + 63) / 64 * 64; }

}  // namespace

std::int64_t SampleWorkspaceBytes(std::int64_t vocabulary) {
  return AdjustedBytes(vocabulary) + vocabulary * 8;
}

void Check(const Sample& op) {
  CHECK(op.logits.dtype() == DType::kF32 && op.logits.rank() == 2);
  const std::int64_t rows = op.logits.size(0);
  CHECK(rows == 0 || op.logits.size(1) > 0);
  CHECK(op.ids.dtype() == DType::kI32 && op.ids.dense() && op.ids.shape() == (Shape{rows}));
  CHECK(op.logprobs.dtype() == DType::kF32 && op.logprobs.dense());
  CHECK(op.logprobs.shape() == (Shape{rows}));
  CHECK_EQ(static_cast<std::int64_t>(op.rows.size()), rows);
  for (const SampleRow& row : op.rows) {
    CHECK(row.temperature >= 0.0f && row.repetition_penalty > 0.0f);
    CHECK_EQ(row.produced.size(), row.produced_counts.size());
  }
  CHECK(op.workspace.dtype() == DType::kU8 && op.workspace.dense());
  CHECK_GE(op.workspace.bytes(), SampleWorkspaceBytes(op.logits.size(1)));
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(op.workspace.raw()) % 64, 0u);
}

void RunOnCpu(const Sample& op) {
  const std::int64_t vocabulary = op.logits.size(1);
  auto* adjusted = reinterpret_cast<float*>(op.workspace.raw());
  auto* keys = reinterpret_cast<std::uint64_t*>(op.workspace.raw() + AdjustedBytes(vocabulary));
  // Rows that need no workspace are shared out among threads.
#pragma omp parallel for if (op.logits.size(0) > 1)
  for (std::int64_t r = 0; r < op.logits.size(0); ++r) {
    if (!TakesLargest(op.rows[static_cast<std::size_t>(r)])) continue;
    const float* logits = op.logits.row<float>(r);
    const Normaliser normaliser = NormaliserOf(logits, vocabulary);
    const std::int32_t id = normaliser.finite() ? FirstOf(logits, vocabulary, normaliser.max) : 0;
    op.ids.data<std::int32_t>()[r] = id;
    op.logprobs.data<float>()[r] = normaliser.LogProbOf(logits[id]);
  }
  for (std::int64_t r = 0; r < op.logits.size(0); ++r) {
    if (TakesLargest(op.rows[static_cast<std::size_t>(r)])) continue;
    const float* logits = op.logits.row<float>(r);
    const Normaliser normaliser = NormaliserOf(logits, vocabulary);
    const std::int32_t id =
        normaliser.finite()
            ? SampleOne(logits, vocabulary, op.rows[static_cast<std::size_t>(r)], adjusted, keys)
            : 0;
    op.ids.data<std::int32_t>()[r] = id;
    op.logprobs.data<float>()[r] = normaliser.LogProbOf(logits[id]);
  }
}

void Check(const LogProb& op) {
  CHECK(op.logits.dtype() == DType::kF32 && op.logits.rank() == 2);
  const std::int64_t rows = op.logits.size(0);
  CHECK(op.out.dtype() == DType::kF32 && op.out.dense() && op.out.shape() == (Shape{rows}));
  CHECK(op.ids.dtype() == DType::kI32 && op.ids.dense() && op.ids.shape() == (Shape{rows}));
}

void RunOnCpu(const LogProb& op) {
  const std::int64_t vocabulary = op.logits.size(1);
#pragma omp parallel for if (op.logits.size(0) > 1)
  for (std::int64_t r = 0; r < op.logits.size(0); ++r) {
    const float* logits = op.logits.row<float>(r);
    const std::int32_t id = op.ids.data<std::int32_t>()[r];
    CHECK(id >= 0 && id < vocabulary);
    op.out.data<float>()[r] = NormaliserOf(logits, vocabulary).LogProbOf(logits[id]);
  }
}

}  // namespace jubal

#include "kernels/sample.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float_math.h"
#include "kernels/sample_forms.h"

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

/// Not a number where a logit is infinite or not a number.
Normaliser NormaliserOf(const float* logits, std::int64_t n) {
  std::uint32_t broken = 0;
  for (std::int64_t i = 0; i < n; ++i) broken |= static_cast<std::uint32_t>(IsBroken(logits[i]));
  if (broken != 0) return {std::numeric_limits<float>::quiet_NaN(), 0.0};
  const float max = Max(logits, n);
  std::uint64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += FixedWeight(FastExp(logits[i] - max));
  return NormaliserFrom(max, sum);
}

std::int32_t FirstOf(const float* logits, std::int64_t vocabulary, float value) {
  return static_cast<std::int32_t>(std::find(logits, logits + vocabulary, value) - logits);
}

void Penalise(const SampleRow& row, float* logits) {
  for (const std::int32_t id : row.seen) {
    logits[id] = PenaliseSeen(logits[id], row.repetition_penalty);
  }
  for (std::size_t i = 0; i < row.produced.size(); ++i) {
    float& logit = logits[row.produced[i]];
    logit = PenaliseProduced(logit, row.presence_penalty, row.frequency_penalty,
                             row.produced_counts[i]);
  }
}

/// The first of the candidates id_at(0), id_at(1) … up to which the weights add up to more than
/// `target`, which all of them do.
template <class IdAt>
std::int32_t Draw(const float* weights, const IdAt& id_at, std::uint64_t target) {
  std::uint64_t sum = 0;
  for (std::int64_t i = 0;; ++i) {
    const std::int32_t id = id_at(i);
    sum += FixedWeight(weights[id]);
    if (sum > target) return id;
  }
}

/// No filter: the candidates are all tokens, ids ascending.
std::int32_t DrawFromAll(const float* weights, std::int64_t vocabulary, std::uint64_t random) {
  std::uint64_t total = 0;
  for (std::int64_t id = 0; id < vocabulary; ++id) total += FixedWeight(weights[id]);
  const auto id_at = [](std::int64_t i) { return static_cast<std::int32_t>(i); };
  return Draw(weights, id_at, MultiplyHigh(random, total));
}

/// The candidates are the first few by (logit descending, id ascending): every filter keeps a
/// prefix of that order. `keys` holds the keys of all tokens, ids ascending.
std::int32_t DrawFiltered(const float* weights, std::int64_t vocabulary, const SampleRow& row,
                          std::uint64_t random, std::uint64_t* keys) {
  const auto id_at = [&](std::int64_t i) { return IdOf(keys[i]); };
  std::int64_t limit = vocabulary;
  std::int64_t sorted = 0;
  if (row.top_k > 0 && row.top_k < vocabulary) {
    limit = sorted = row.top_k;
    std::nth_element(keys, keys + limit, keys + vocabulary);
    std::sort(keys, keys + limit);
  }
  std::uint64_t enough = std::numeric_limits<std::uint64_t>::max();
  if (row.top_p < 1.0f) {  // a share of the weights that top_k keeps
    std::uint64_t whole = 0;
    for (std::int64_t i = 0; i < limit; ++i) whole += FixedWeight(weights[id_at(i)]);
    enough = ShareOf(row.top_p, whole);
  }
  std::uint64_t total = 0;
  for (std::int64_t count = 0; count < limit; ++count) {
    if (count == sorted) {  // puts a doubling prefix in order, since most draws need a short one
      sorted = std::min(limit, std::max(kFirstSorted, 2 * sorted));
      if (sorted < limit) std::nth_element(keys + count, keys + sorted, keys + limit);
      std::sort(keys + count, keys + sorted);
    }
    const float weight = weights[id_at(count)];
    if (count > 0 && (total >= enough || weight < row.min_p)) break;
    total += FixedWeight(weight);
  }
  return Draw(weights, id_at, MultiplyHigh(random, total));
}

/// Whether the row's token is that of the largest logit as it is.
bool TakesLargest(const SampleRow& row) {
  return row.temperature == 0.0f && row.seen.empty() && row.produced.empty();
}

std::int32_t SampleOne(const float* raw, std::int64_t vocabulary, const SampleRow& row,
                       float* adjusted, std::uint64_t* keys) {
  std::copy_n(raw, vocabulary, adjusted);
  Penalise(row, adjusted);
  const float max = Max(adjusted, vocabulary);
  if (row.temperature == 0.0f) return FirstOf(adjusted, vocabulary, max);
  const bool filtered = HasFilter(row);
  if (filtered) {
    for (std::int64_t id = 0; id < vocabulary; ++id) keys[id] = KeyOf(adjusted[id], id);
  }
  float* weights = adjusted;  // probabilities relative to the most probable token
  for (std::int64_t id = 0; id < vocabulary; ++id) {
    weights[id] = FastExp((adjusted[id] - max) / row.temperature);
  }
  const std::uint64_t random = RandomBits(row);
  return filtered ? DrawFiltered(weights, vocabulary, row, random, keys)
                  : DrawFromAll(weights, vocabulary, random);
}

std::int64_t AdjustedBytes(std::int64_t vocabulary) { return (vocabulary * 4 + 63) / 64 * 64; }

}  // namespace

std::uint64_t RandomBits(const SampleRow& row) {
  using Philox = r123::Philox4x32;
  const auto low = [](std::uint64_t word) { return static_cast<std::uint32_t>(word); };
  const auto high = [](std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); };
  const Philox::ctr_type counter = {{low(row.position), high(row.position), 0, 0}};
  const Philox::key_type key = {{low(row.seed), high(row.seed)}};
  const Philox::ctr_type random = Philox()(counter, key);
  return (std::uint64_t{random[1]} << 32) | random[0];
}

bool HasFilter(const SampleRow& row) {
  return row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
}

std::int64_t MaxListed(std::span<const SampleRow> rows) {
  std::size_t most = 0;
  for (const SampleRow& row : rows) most = std::max({most, row.seen.size(), row.produced.size()});
  return static_cast<std::int64_t>(most);
}

std::int64_t SampleWorkspaceBytes(std::int64_t vocabulary, std::int64_t rows,
                                  std::int64_t max_listed, Device device) {
  if (device == Device::kCuda) {
    return GpuSampleHeadBytes(rows, max_listed) + rows * vocabulary * 4;
  }
  return AdjustedBytes(vocabulary) + vocabulary * 8;
}

void Check(const Sample& op) {
  CHECK(op.logits.dtype() == DType::kF32 && op.logits.rank() == 2);
  const std::int64_t rows = op.logits.size(0);
  const std::int64_t vocabulary = op.logits.size(1);
  CHECK(rows == 0 || (vocabulary > 0 && vocabulary <= kMaxVocabulary));
  CHECK(op.ids.dtype() == DType::kI32 && op.ids.dense() && op.ids.shape() == (Shape{rows}));
  CHECK(op.logprobs.dtype() == DType::kF32 && op.logprobs.dense());
  CHECK(op.logprobs.shape() == (Shape{rows}));
  CHECK_EQ(static_cast<std::int64_t>(op.rows.size()), rows);
  for (const SampleRow& row : op.rows) {
    CHECK(row.temperature >= 0.0f && row.repetition_penalty > 0.0f);
    CHECK(std::isfinite(row.presence_penalty) && std::isfinite(row.frequency_penalty));
    CHECK_EQ(row.produced.size(), row.produced_counts.size());
    for (const auto& list : {row.seen, row.produced}) {
      for (const std::int32_t id : list) CHECK(id >= 0 && id < vocabulary);
    }
  }
  CHECK(op.workspace.dtype() == DType::kU8 && op.workspace.dense());
  CHECK_GE(op.workspace.bytes(),
           SampleWorkspaceBytes(vocabulary, rows, MaxListed(op.rows), op.workspace.device()));
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(op.workspace.raw()) % 64, 0u);
}

void RunOnCpu(const Sample& op) {
  const std::int64_t vocabulary = op.logits.size(1);
  auto* adjusted = reinterpret_cast<float*>(op.workspace.raw());
  auto* keys = reinterpret_cast<std::uint64_t*>(op.workspace.raw() + AdjustedBytes(vocabulary));
  const auto draw = [&](std::int64_t r, const auto& id_of) {
    const float* logits = op.logits.row<float>(r);
    const Normaliser normaliser = NormaliserOf(logits, vocabulary);
    const std::int32_t id = std::isnan(normaliser.max) ? 0 : id_of(logits, normaliser.max);
    op.ids.data<std::int32_t>()[r] = id;
    op.logprobs.data<float>()[r] = normaliser.LogProbOf(logits[id]);
  };
  // Rows that need no workspace are shared out among threads.
#pragma omp parallel for if (op.logits.size(0) > 1)
  for (std::int64_t r = 0; r < op.logits.size(0); ++r) {
    if (!TakesLargest(op.rows[static_cast<std::size_t>(r)])) continue;
    draw(r, [&](const float* logits, float max) { return FirstOf(logits, vocabulary, max); });
  }
  for (std::int64_t r = 0; r < op.logits.size(0); ++r) {
    const SampleRow& row = op.rows[static_cast<std::size_t>(r)];
    if (TakesLargest(row)) continue;
    draw(r, [&](const float* logits, float) {
      return SampleOne(logits, vocabulary, row, adjusted, keys);
    });
  }
}

void Check(const LogProb& op) {
  CHECK(op.logits.dtype() == DType::kF32 && op.logits.rank() == 2);
  const std::int64_t rows = op.logits.size(0);
  CHECK(op.out.dtype() == DType::kF32 && op.out.dense() && op.out.shape() == (Shape{rows}));
  CHECK(op.ids.dtype() == DType::kI32 && op.ids.dense() && op.ids.shape() == (Shape{rows}));
  CHECK_LE(op.logits.size(1), kMaxVocabulary);
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

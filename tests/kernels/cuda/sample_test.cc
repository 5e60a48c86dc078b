#include "kernels/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

using Ids = std::vector<std::int32_t>;

/// Rows of a batch, with the lists that they view.
struct Batch {
  std::vector<SampleRow> rows;
  std::vector<Ids> lists;
};

/// `count` distinct ids below `vocabulary`.
Ids DistinctIds(std::int64_t count, std::int64_t vocabulary, std::mt19937& random) {
  Ids ids(static_cast<std::size_t>(vocabulary));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  std::shuffle(ids.begin(), ids.end(), random);
  ids.resize(static_cast<std::size_t>(count));
  return ids;
}

/// Rows with all combinations of what changes how they are drawn.
Batch RandomRows(std::int64_t count, std::int64_t vocabulary, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto one_of = [&](std::initializer_list<float> values) {
    return values.begin()[random() % values.size()];
  };
  Batch batch;
  for (std::int64_t r = 0; r < count; ++r) {
    SampleRow row{.temperature = one_of({0.0f, 1e-40f, 0.01f, 0.7f, 1.0f, 1.0f, 3.0f, 1e30f}),
                  .top_k = static_cast<std::int32_t>(one_of({0, 0, 0, 1, 5, 50, 1000, 1e9f})),
                  .top_p = one_of({1.0f, 1.0f, 1e-9f, 0.3f, 0.9f, 0.9999999f}),
                  .min_p = one_of({0.0f, 0.0f, 1e-20f, 0.05f, 0.5f, 1.0f, 2.0f}),
                  .presence_penalty = one_of({0.0f, 1.5f, -2.0f}),
                  .frequency_penalty = one_of({0.0f, 0.3f, -0.1f}),
                  .repetition_penalty = one_of({1.0f, 1.3f, 1e-38f, 10.0f}),
                  .seed = random(),
                  .position = std::uint64_t{random()} << 20};
    if (random() % 2 == 0) {
      const auto most = static_cast<std::uint32_t>(std::min<std::int64_t>(vocabulary, 300));
      const Ids seen = DistinctIds(random() % (most + 1), vocabulary, random);
      const Ids produced(seen.rbegin(), seen.rbegin() + std::ssize(seen) / 2);
      Ids counts;
      for (std::size_t i = 0; i < produced.size(); ++i) {
        counts.push_back(1 + static_cast<std::int32_t>(random() % 9));
      }
      batch.lists.push_back(seen);
      row.seen = batch.lists.back();
      batch.lists.push_back(produced);
      row.produced = batch.lists.back();
      batch.lists.push_back(counts);
      row.produced_counts = batch.lists.back();
    }
    batch.rows.push_back(row);
  }
  return batch;
}

struct Samples {
  Ids ids;
  std::vector<float> logprobs;
};

/// Equal bit for bit, but for a NaN's.
void ExpectSame(const Samples& got, const Samples& expected) {
  EXPECT_EQ(got.ids, expected.ids);
  ASSERT_EQ(got.logprobs.size(), expected.logprobs.size());
  for (std::size_t r = 0; r < got.logprobs.size(); ++r) {
    if (std::isnan(got.logprobs[r]) && std::isnan(expected.logprobs[r])) continue;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(got.logprobs[r]),
              std::bit_cast<std::uint32_t>(expected.logprobs[r]))
        << "row " << r;
  }
}

class SampleGpuTest : public GpuTest {
 protected:
  static Samples OnCpu(ConstTensorView logits, std::span<const SampleRow> rows) {
    Ints ids({logits.size(0)}, -1);
    Floats logprobs({logits.size(0)});
    const std::int64_t bytes =
        SampleWorkspaceBytes(logits.size(1), logits.size(0), 0, Device::kCpu);
    const AlignedBytes workspace(bytes);
    RunSpecification(Sample{ids.view(), logprobs.view(), logits, rows,
                            TensorView(workspace.data(), DType::kU8, {bytes})});
    return {ids.values(), logprobs.values()};
  }

  Samples OnGpus(ConstTensorView logits, std::span<const SampleRow> rows) {
    std::size_t listed = 0;
    for (const SampleRow& row : rows) listed = std::max(listed, row.seen.size());
    const std::int64_t count = logits.size(0);
    const TensorView ids = Allocate(DType::kI32, {count});
    const TensorView logprobs = Allocate(DType::kF32, {count});
    const TensorView workspace = Allocate(
        DType::kU8, {SampleWorkspaceBytes(logits.size(1), count, static_cast<std::int64_t>(listed),
                                          Device::kCuda)});
    Launch(Sample{ids, logprobs, logits, rows, workspace});
    return {ReadBack<std::int32_t>(ids), ReadBack<float>(logprobs)};
  }
};
INSTANTIATE_GPU_TEST(SampleGpuTest);

// Breaks: a request gets other tokens on a GPU than on CPUs, or log probabilities that differ.
TEST_P(SampleGpuTest, DrawsWhatTheSpecificationDraws) {
  std::uint32_t seed = 0;
  for (const std::int64_t vocabulary : {1, 7, 1001, 5000}) {
    for (const float deviation : {0.01f, 3.0f, 40.0f}) {
      SCOPED_TRACE(testing::Message() << vocabulary << " logits, deviation " << deviation);
      constexpr std::int64_t kRows = 10;
      Floats logits = RandomFloats({kRows, vocabulary}, ++seed, deviation);
      for (std::int64_t i = 0; i < kRows * vocabulary / 2; ++i) {  // ties, −0 and 0 too
        logits[i] = std::round(logits[i] * 2.0f) / 2.0f;
      }
      const Batch batch = RandomRows(kRows, vocabulary, seed);
      ExpectSame(OnGpus(OnGpu(logits), batch.rows), OnCpu(logits.view(), batch.rows));
    }
  }
}

// Breaks: a filter keeps one token more or less where a sum meets its bound exactly.
TEST_P(SampleGpuTest, FiltersEndWithinTies) {
  for (const float others : {1.0f, 0.9f}) {  // as probable as the first, or 0.905 times
    Floats logits({6, 4}, others);
    for (std::int64_t r = 0; r < 6; ++r) logits[r * 4] = 1.0f;
    const TensorView there = OnGpu(logits);
    std::vector<SampleRow> rows(6);
    for (const SampleRow& how : {SampleRow{.top_p = 0.25f},
                                 {.top_p = 0.5f, .min_p = 1.0f},
                                 {.top_k = 3},
                                 {.top_k = 2, .top_p = 0.5f},
                                 {.min_p = 0.95f}}) {
      for (std::uint64_t r = 0; r < 6; ++r) {
        rows[r] = how;
        rows[r].seed = r;
      }
      ExpectSame(OnGpus(there, rows), OnCpu(logits.view(), rows));
    }
  }
}

// Breaks: over a real vocabulary, where a warp has many tokens.
TEST_P(SampleGpuTest, DrawsFromARealVocabulary) {
  const Floats logits = RandomFloats({4, 131072}, 5, 2.5f);
  std::vector<SampleRow> rows(4);
  rows[0] = {.temperature = 0.0f};
  rows[1] = {.seed = 5, .position = 77};
  rows[2] = {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .seed = 6};
  rows[3] = {.temperature = 1.3f, .top_p = 0.9f, .min_p = 1e-4f, .seed = 7};
  ExpectSame(OnGpus(OnGpu(logits), rows), OnCpu(logits.view(), rows));
}

// Breaks: a request's tokens change with the batch.
TEST_P(SampleGpuTest, RowsDoNotKnowEachOther) {
  const Floats wide = RandomFloats({6, 1100}, 11, 4.0f);
  const TensorView logits = OnGpu(wide).Columns(50, 1001);
  const Batch batch = RandomRows(6, 1001, 12);
  const Samples together = OnGpus(logits, batch.rows);
  ExpectSame(together, OnCpu(wide.view().Columns(50, 1001), batch.rows));
  for (std::int64_t r = 0; r < 6; ++r) {
    const auto row = static_cast<std::size_t>(r);
    ExpectSame(OnGpus(logits.Rows(r, 1), std::span(batch.rows).subspan(row, 1)),
               {{together.ids[row]}, {together.logprobs[row]}});
  }
}

// Breaks: a model with broken weights takes the server down, or answers with noise.
TEST_P(SampleGpuTest, ReportsLogitsThatAreNotFinite) {
  constexpr std::int64_t kVocabulary = 2000;
  Floats logits = RandomFloats({9, kVocabulary}, 21);
  const float broken[] = {NAN, INFINITY, -INFINITY};
  for (std::int64_t r = 1; r < 9; ++r) logits[r * kVocabulary + r * 200] = broken[r % 3];
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<SampleRow> rows(9, {.temperature = temperature, .top_p = 0.5f});
    const Samples samples = OnGpus(OnGpu(logits), rows);
    ExpectSame(samples, OnCpu(logits.view(), rows));
    EXPECT_TRUE(std::isfinite(samples.logprobs[0]));
    for (std::size_t r = 1; r < 9; ++r) {
      EXPECT_EQ(samples.ids[r], 0);
      EXPECT_TRUE(std::isnan(samples.logprobs[r]));
    }
  }
}

// Breaks: logits of the largest floats, which only penalties and broken weights make, hang a draw.
TEST_P(SampleGpuTest, TakesTheLargestFloats) {
  constexpr float kMost = std::numeric_limits<float>::max();
  const Floats logits({1, 6}, {-kMost, 1e-45f, kMost, -0.0f, 0.0f, kMost});
  for (const float temperature : {0.0f, 1e-45f, 1.0f, kMost}) {
    for (const float min_p : {0.0f, 0.1f}) {
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        const SampleRow row{.temperature = temperature, .min_p = min_p, .seed = seed};
        ExpectSame(OnGpus(OnGpu(logits), {&row, 1}), OnCpu(logits.view(), {&row, 1}));
      }
    }
  }
}

// Breaks: scores of a prompt differ between GPUs and CPUs, or from what a draw reports.
TEST_P(SampleGpuTest, ScoresWhatTheSpecificationScores) {
  for (const std::int64_t vocabulary : {1, 7, 1001, 5000}) {
    for (const std::int64_t rows : {0, 1, 9}) {
      Floats logits = RandomFloats({rows, vocabulary}, 31, 6.0f);
      if (rows == 9) logits[4 * vocabulary] = NAN;
      Ints ids({rows});
      for (std::int64_t r = 0; r < rows; ++r) {
        ids[r] = static_cast<std::int32_t>((r * 997 + vocabulary - 1) % vocabulary);
      }
      Floats expected({rows});
      RunSpecification(LogProb{expected.view(), logits.view(), ids.view()});
      const TensorView out = Allocate(DType::kF32, {rows});
      Launch(LogProb{out, OnGpu(logits), OnGpu(ids)});
      ExpectSame({{}, ReadBack<float>(out)}, {{}, expected.values()});
    }
  }
}

// Breaks: a step that completes no token crashes.
TEST_P(SampleGpuTest, TakesNoRows) {
  EXPECT_TRUE(OnGpus(Allocate(DType::kF32, {0, 100}), {}).ids.empty());
}

}  // namespace
}  // namespace jubal

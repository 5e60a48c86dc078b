#include "kernels/sample.h"

#include <cstring>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/float_math.h"
#include "kernels/sample_forms.h"

namespace jubal {
namespace {

// A block draws one row's token. What it adds up are integers, so that no order matters, not even
// that of atomics.

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

// Candidates are found in their order without sorting: first among bins of the logits, equally
// wide, then digit by digit of their keys. A bin is 1/64 of what makes a token e times less
// probable; what lies beyond the last one has no weight.
constexpr int kBins = 2048;
constexpr float kBinsPerE = 64.0f;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

constexpr std::uint64_t kNoKey = 0;  // no finite logit has it

/// The type that atomicAdd takes.
using Wide = unsigned long long;

enum class Measure : std::uint8_t { kCount, kWeight };

/// How many tokens, and the sum of their weights.
struct Tally {
  std::uint64_t count;
  std::uint64_t weight;

  __device__ std::uint64_t In(Measure measure) const {
    return measure == Measure::kCount ? count : weight;
  }
  __device__ Tally operator+(const Tally& other) const {
    return {count + other.count, weight + other.weight};
  }
};

template <int kSize>
struct Histogram {
  unsigned counts[kSize];
  Wide weights[kSize];

  __device__ Tally operator()(int i) const { return {counts[i], weights[i]}; }
  __device__ void Add(int i, std::uint64_t weight) {
    atomicAdd(&counts[i], 1u);
    atomicAdd(&weights[i], static_cast<Wide>(weight));
  }
  __device__ void Clear() {
    for (int i = static_cast<int>(threadIdx.x); i < kSize; i += kThreads) {
      counts[i] = 0;
      weights[i] = 0;
    }
  }
};

struct Shared {
  std::uint64_t partial[kWarps];
  Tally tallies[kWarps];
  Histogram<kBins> bins;
  Histogram<kDigits> digits;
};

struct Sum {
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const { return a + b; }
};
struct Least {
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const {
    return a < b ? a : b;
  }
};

/// The block's values in one, for all of its threads.
template <class Combine>
__device__ std::uint64_t Reduce(Shared& shared, std::uint64_t value, Combine combine) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(kFullWarp, value, lanes));
  }
  if (threadIdx.x % kWarp == 0) shared.partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = shared.partial[0];
  for (int warp = 1; warp < kWarps; ++warp) value = combine(value, shared.partial[warp]);
  __syncthreads();
  return value;
}

/// Σ of(index) for index in [0, size).
template <class Of>
__device__ std::uint64_t SumOf(Shared& shared, int size, const Of& of) {
  std::uint64_t sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) sum += of(i);
  return Reduce(shared, sum, Sum());
}

/// The key of the first candidate; kNoKey when a logit is infinite or not a number.
__device__ std::uint64_t FirstKey(Shared& shared, const float* logits, int vocabulary) {
  std::uint64_t key = ~std::uint64_t{0};
  for (int id = static_cast<int>(threadIdx.x); id < vocabulary; id += kThreads) {
    const std::uint64_t other = IsBroken(logits[id]) ? kNoKey : KeyOf(logits[id], id);
    key = other < key ? other : key;
  }
  return Reduce(shared, key, Least());
}

__device__ Normaliser NormaliserOf(Shared& shared, const float* logits, int vocabulary, float max) {
  const std::uint64_t sum =
      SumOf(shared, vocabulary, [=](int id) { return FixedWeight(FastExp(logits[id] - max)); });
  return NormaliserFrom(max, sum);
}

struct Found {
  int index;
  Tally before;  // of all in front of it
};

/// The first index in [0, size) with which of(0) + of(1) + … measures more than `target`, as all
/// of them together do.
template <class Of>
__device__ Found FirstBeyond(Shared& shared, int size, Measure measure, std::uint64_t target,
                             const Of& of) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int begin = 0;
  Tally before{0, 0};
  while (size > 1) {  // each warp has a part of [begin, begin + size)
    const int part = DivideUp(size, kWarps);
    Tally mine{0, 0};
    for (int i = warp * part + lane; i < size && i < (warp + 1) * part; i += kWarp) {
      mine = mine + of(begin + i);
    }
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      mine.count += __shfl_xor_sync(kFullWarp, mine.count, lanes);
      mine.weight += __shfl_xor_sync(kFullWarp, mine.weight, lanes);
    }
    if (lane == 0) shared.tallies[warp] = mine;
    __syncthreads();
    int chosen = 0;
    for (; chosen < kWarps - 1; ++chosen) {
      const Tally after = before + shared.tallies[chosen];
      if (after.In(measure) > target) break;
      before = after;
    }
    __syncthreads();
    begin += chosen * part;
    size = size - chosen * part < part ? size - chosen * part : part;
  }
  return {begin, before};
}

/// A row's logits after penalties.
struct Candidates {
  const float* logits;
  int vocabulary;
  float max;
  float temperature;

  __device__ float Weight(float logit) const { return FastExp((logit - max) / temperature); }
  /// kBins and above: without weight.
  __device__ int BinOf(float logit) const {
    const float scale = fminf(kBinsPerE / temperature, 1e30f);  // 0 times it is 0
    return static_cast<int>(fminf((max - logit) * scale, static_cast<float>(kBins)));
  }
};

__device__ void FillBins(Shared& shared, const Candidates& all) {
  shared.bins.Clear();
  __syncthreads();
  for (int id = static_cast<int>(threadIdx.x); id < all.vocabulary; id += kThreads) {
    const float logit = all.logits[id];
    const int bin = all.BinOf(logit);
    if (bin < kBins) shared.bins.Add(bin, FixedWeight(all.Weight(logit)));
  }
  __syncthreads();
}

/// A place in the order of the candidates: `index` of those of one logit.
struct Place {
  std::uint32_t logit_key;
  std::uint64_t index;
  std::uint64_t sum;  // of the weights up to this one
};

/// The first place up to which there are more than `target` tokens, or weights. The bins are filled
/// and have as many.
__device__ Place Find(Shared& shared, const Candidates& all, Measure measure,
                      std::uint64_t target) {
  const Found bin = FirstBeyond(shared, kBins, measure, target, shared.bins);
  Tally before = bin.before;
  std::uint64_t prefix = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    shared.digits.Clear();
    __syncthreads();
    for (int id = static_cast<int>(threadIdx.x); id < all.vocabulary; id += kThreads) {
      const float logit = all.logits[id];
      if (all.BinOf(logit) != bin.index) continue;
      const std::uint64_t digits = std::uint64_t{LogitKey(logit)} >> shift;
      if (digits >> kDigitBits != prefix) continue;
      shared.digits.Add(static_cast<int>(digits % kDigits), FixedWeight(all.Weight(logit)));
    }
    __syncthreads();
    const Found digit =
        FirstBeyond(shared, kDigits, measure, target - before.In(measure), shared.digits);
    before = before + digit.before;
    prefix = prefix << kDigitBits | static_cast<std::uint64_t>(digit.index);
    __syncthreads();
  }
  const auto logit_key = static_cast<std::uint32_t>(prefix);
  const std::uint64_t weight = FixedWeight(all.Weight(LogitOf(logit_key)));
  const std::uint64_t beyond = target - before.In(measure);
  const std::uint64_t index = measure == Measure::kCount ? beyond : beyond / weight;
  return {logit_key, index, before.weight + (index + 1) * weight};
}

/// As on CPUs, every filter keeps a prefix of the order: here, of a sum of weights.
__device__ int DrawFiltered(Shared& shared, const Candidates& all, const GpuSampleRow& row) {
  FillBins(shared, all);
  const Tally live = {SumOf(shared, kBins, [&](int i) { return shared.bins(i).count; }),
                      SumOf(shared, kBins, [&](int i) { return shared.bins(i).weight; })};
  std::uint64_t total = live.weight;
  if (row.top_k > 0 && static_cast<std::uint64_t>(row.top_k) < live.count) {
    total = Find(shared, all, Measure::kCount, static_cast<std::uint64_t>(row.top_k) - 1).sum;
  }
  if (row.top_p < 1.0f) {
    total = Find(shared, all, Measure::kWeight, ShareOf(row.top_p, total) - 1).sum;
  }
  if (row.min_p > 0.0f) {
    std::uint64_t end = ~std::uint64_t{0};  // the key of the first that is not kept
    for (int id = static_cast<int>(threadIdx.x); id < all.vocabulary; id += kThreads) {
      if (all.Weight(all.logits[id]) >= row.min_p) continue;
      const std::uint64_t key = LogitKey(all.logits[id]);
      end = key < end ? key : end;
    }
    end = Reduce(shared, end, Least());
    const std::uint64_t sum = SumOf(shared, all.vocabulary, [&](int id) {
      return LogitKey(all.logits[id]) < end ? FixedWeight(all.Weight(all.logits[id])) : 0;
    });
    total = min(total, sum);  // with nothing kept, the first is drawn all the same
  }
  const Place place = Find(shared, all, Measure::kWeight, MultiplyHigh(row.random, total));
  return FirstBeyond(shared, all.vocabulary, Measure::kCount, place.index,
                     [&](int id) -> Tally {
                       return {LogitKey(all.logits[id]) == place.logit_key ? 1u : 0u, 0};
                     })
      .index;
}

__device__ int DrawFromAll(Shared& shared, const Candidates& all, const GpuSampleRow& row) {
  const auto weight_of = [&](int id) { return FixedWeight(all.Weight(all.logits[id])); };
  const std::uint64_t total = SumOf(shared, all.vocabulary, weight_of);
  return FirstBeyond(shared, all.vocabulary, Measure::kWeight, MultiplyHigh(row.random, total),
                     [&](int id) -> Tally {
                       return {0, weight_of(id)};
                     })
      .index;
}

__device__ void Penalise(const GpuSampleRow& row, const std::int32_t* lists, const float* logits,
                         int vocabulary, float* penalised) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int id = thread; id < vocabulary; id += kThreads) penalised[id] = logits[id];
  __syncthreads();
  const std::int32_t* seen = lists + row.lists;
  for (int i = thread; i < row.seen_size; i += kThreads) {
    penalised[seen[i]] = PenaliseSeen(penalised[seen[i]], row.repetition_penalty);
  }
  __syncthreads();
  const std::int32_t* produced = seen + row.seen_size;
  for (int i = thread; i < row.produced_size; i += kThreads) {
    float& logit = penalised[produced[i]];
    logit = PenaliseProduced(logit, row.presence_penalty, row.frequency_penalty,
                             produced[row.produced_size + i]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    SampleRows(std::int32_t* ids, float* logprobs, const float* logits, std::int64_t stride,
               int vocabulary, const GpuSampleRow* rows, const std::int32_t* lists,
               float* penalised) {
  Shared& shared = BlockShared<Shared>();
  const GpuSampleRow& row = rows[blockIdx.x];
  logits += blockIdx.x * stride;
  const std::uint64_t first = FirstKey(shared, logits, vocabulary);
  Normaliser normaliser{NAN, 0.0};
  int id = 0;
  if (first != kNoKey) {
    id = IdOf(first);
    normaliser = NormaliserOf(shared, logits, vocabulary, logits[id]);
    const float* adjusted = logits;
    if (row.seen_size + row.produced_size > 0) {
      penalised += static_cast<std::int64_t>(blockIdx.x) * vocabulary;
      Penalise(row, lists, logits, vocabulary, penalised);
      adjusted = penalised;
      id = IdOf(FirstKey(shared, adjusted, vocabulary));
    }
    if (row.temperature > 0.0f) {
      const Candidates all{adjusted, vocabulary, adjusted[id], row.temperature};
      id = row.filtered != 0 ? DrawFiltered(shared, all, row) : DrawFromAll(shared, all, row);
    }
  }
  if (threadIdx.x == 0) {
    ids[blockIdx.x] = id;
    logprobs[blockIdx.x] = normaliser.LogProbOf(logits[id]);
  }
}

__global__ void __launch_bounds__(kThreads)
    ScoreRows(float* out, const float* logits, std::int64_t stride, int vocabulary,
              const std::int32_t* ids) {
  Shared& shared = BlockShared<Shared>();
  logits += blockIdx.x * stride;
  const int id = ids[blockIdx.x];
  if (id < 0 || id >= vocabulary) __trap();
  const std::uint64_t first = FirstKey(shared, logits, vocabulary);
  Normaliser normaliser{NAN, 0.0};
  if (first != kNoKey) normaliser = NormaliserOf(shared, logits, vocabulary, logits[IdOf(first)]);
  if (threadIdx.x == 0) out[blockIdx.x] = normaliser.LogProbOf(logits[id]);
}

void Append(std::vector<std::int32_t>& lists, std::span<const std::int32_t> list) {
  lists.insert(lists.end(), list.begin(), list.end());
}

}  // namespace

void RunOnGpu(const Sample& op, Stream& stream) {
  if (op.rows.empty()) return;
  const auto rows = static_cast<std::int64_t>(op.rows.size());
  std::vector<GpuSampleRow> heads;
  std::vector<std::int32_t> lists;
  for (const SampleRow& row : op.rows) {
    heads.push_back({.temperature = row.temperature,
                     .top_p = row.top_p,
                     .min_p = row.min_p,
                     .presence_penalty = row.presence_penalty,
                     .frequency_penalty = row.frequency_penalty,
                     .repetition_penalty = row.repetition_penalty,
                     .top_k = row.top_k,
                     .seen_size = static_cast<std::int32_t>(row.seen.size()),
                     .produced_size = static_cast<std::int32_t>(row.produced.size()),
                     .filtered = HasFilter(row) ? 1 : 0,
                     .lists = std::ssize(lists),
                     .random = RandomBits(row)});
    Append(lists, row.seen);
    Append(lists, row.produced);
    Append(lists, row.produced_counts);
  }
  const auto copy = [&](std::byte* to, const void* from, std::size_t bytes) {
    const auto size = static_cast<std::int64_t>(bytes);
    if (size == 0) return;
    stream.queue().Copy(to, size, static_cast<const std::byte*>(from), size, size, 1);
  };
  auto* const rows_there = reinterpret_cast<std::byte*>(DeviceData<std::uint8_t>(op.workspace));
  std::byte* const lists_there =
      rows_there + rows * static_cast<std::int64_t>(sizeof(GpuSampleRow));
  copy(rows_there, heads.data(), heads.size() * sizeof(GpuSampleRow));
  copy(lists_there, lists.data(), lists.size() * sizeof(std::int32_t));
  Launch(stream, SampleRows, Extent(rows), kThreads, sizeof(Shared),
         DeviceData<std::int32_t>(op.ids), DeviceData<float>(op.logprobs),
         DeviceData<float>(op.logits), op.logits.row_stride(), static_cast<int>(op.logits.size(1)),
         reinterpret_cast<const GpuSampleRow*>(rows_there),
         reinterpret_cast<const std::int32_t*>(lists_there),
         reinterpret_cast<float*>(rows_there + GpuSampleHeadBytes(rows, MaxListed(op.rows))));
}

void RunOnGpu(const LogProb& op, Stream& stream) {
  Launch(stream, ScoreRows, Extent(op.logits.size(0)), kThreads, sizeof(Shared),
         DeviceData<float>(op.out), DeviceData<float>(op.logits), op.logits.row_stride(),
         static_cast<int>(op.logits.size(1)), DeviceData<std::int32_t>(op.ids));
}

}  // namespace jubal

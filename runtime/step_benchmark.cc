#include "runtime/step_benchmark.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/counter_random.h"
#include "kernels/cpu_limits.h"
#include "kernels/gpu_limits.h"
#include "parallel/gather_values.h"
#include "runtime/logit_reader.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kRuns = 3;
constexpr std::int64_t kWarmUp = kRuns;  // as the number of a run
/// Read by the ranks of a host together to measure its bandwidth: more than caches hold, a tenth of
/// a second on a small machine.
constexpr std::int64_t kReadBytes = std::int64_t{2} << 30;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double StandardDeviation(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (count - 1));
}

template <class T>
TensorView HostView(std::vector<T>& values, Shape shape) {
  return {reinterpret_cast<std::byte*>(values.data()), DTypeOf<T>(), shape};
}

template <class T>
TensorView HostVector(std::vector<T>& values) {
  return HostView(values, Shape{static_cast<std::int64_t>(values.size())});
}

enum class KeyOrValue : std::int64_t { kKey, kValue };

/// One token's keys or values on the KV heads `heads` of the model.
void FillToken(KeyOrValue part, std::int64_t layer, std::int64_t sequence, std::int64_t position,
               Range heads, std::int64_t head_dim, float* out) {
  for (std::int64_t head = heads.begin; head < heads.end; ++head) {
    const std::uint64_t stream =
        RandomStream({static_cast<std::int64_t>(part), layer, sequence, position, head});
    for (std::int64_t i = 0; i < head_dim; i += 2) {
      const std::uint64_t word = RandomWord(stream, static_cast<std::uint64_t>(i));
      *out++ = UnitVariance(static_cast<std::uint32_t>(word));
      *out++ = UnitVariance(static_cast<std::uint32_t>(word >> 32));
    }
  }
}

/// The pages of a group's sequence number `sequence`.
std::vector<std::int32_t> PagesOf(std::int64_t sequence, std::int64_t pages) {
  std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
  std::iota(table.begin(), table.end(), static_cast<std::int32_t>(sequence * pages));
  return table;
}

}  // namespace

StepBenchmark::StepBenchmark(Decoder& decoder, const ModelSource& source,
                             const ServingOptions& options)
    : decoder_(decoder),
      reader_(decoder),
      work_(source, decoder.mesh().plan, decoder.mesh().seat, options.kv_type),
      prefill_chunk_(options.prefill_chunk) {
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    if (source.weights()[i].expert_stack) expert_type_ = source.format(i).type;
  }
  const std::vector<std::int64_t> possible = GatherValues(
      *decoder_.mesh().world,
      std::min(decoder_.weight_memory().bytes(), kReadBytes / decoder_.mesh().node->size()));
  read_bytes_ = *std::min_element(possible.begin(), possible.end());
}

std::int64_t StepBenchmark::StepsOf(const StepTest& test) const {
  if (test.kind == StepTest::Kind::kDecode) return test.tokens;
  return DivideUp(test.tokens, prefill_chunk_);
}

StepPlan StepBenchmark::PlanOf(const StepTest& test, std::int64_t run, std::int64_t step) const {
  const bool decode = test.kind == StepTest::Kind::kDecode;
  const auto vocabulary = static_cast<std::uint64_t>(decoder_.model().vocabulary);
  const std::int64_t pages = decoder_.limits().max_pages;
  const std::int64_t first = decode ? step : step * prefill_chunk_;  // token of each sequence
  const std::int64_t count = decode ? 1 : std::min(prefill_chunk_, test.tokens - first);
  const int data = decoder_.mesh().plan.data;
  StepPlan plan;
  plan.groups.resize(static_cast<std::size_t>(data));
  for (int g = 0; g < data; ++g) {
    const Range sequences = OwnedRange(test.batch, g, data);
    if (sequences.empty()) continue;
    GroupStep& group = plan.groups[static_cast<std::size_t>(g)];
    group.max_pages = static_cast<std::int32_t>(pages);
    for (std::int64_t s = sequences.begin; s < sequences.end; ++s) {
      const std::int64_t local = s - sequences.begin;
      const std::vector<std::int32_t> table = PagesOf(local, pages);
      group.page_table.insert(group.page_table.end(), table.begin(), table.end());
      for (std::int64_t i = first; i < first + count; ++i) {
        group.tokens.push_back(
            static_cast<TokenId>(RandomWord(RandomStream({run, s, i}), 0) % vocabulary));
        group.positions.push_back(static_cast<std::int32_t>(test.depth + i));
        group.sequences.push_back(static_cast<std::int32_t>(local));
      }
      if (decode || first + count == test.tokens) {
        group.logit_rows.push_back(group.num_tokens() - 1);
      }
    }
  }
  return plan;
}

// Memory that was never written would be read from one page of zeros, in the cache.
void StepBenchmark::FillKeysAndValues(const StepTest& test) {
  const Mesh& mesh = decoder_.mesh();
  const ModelDescription& model = decoder_.model();
  const Range heads = OwnedKvHeads(model, mesh.seat.tensor, mesh.plan.tensor);
  const std::int64_t width = heads.size() * model.head_dim;
  const Range sequences = OwnedRange(test.batch, mesh.seat.data, mesh.plan.data);
  const std::int64_t pages = decoder_.limits().max_pages;
  const std::int64_t most = std::min(test.depth, decoder_.limits().max_tokens);
  std::vector<float> keys(static_cast<std::size_t>(most * width));
  std::vector<float> values(keys.size());
  for (std::int64_t s = sequences.begin; s < sequences.end; ++s) {
    for (std::int64_t begin = 0; begin < test.depth; begin += most) {
      const std::int64_t count = std::min(most, test.depth - begin);
      const auto rows = static_cast<std::size_t>(count);
      GroupStep places{.tokens = std::vector<TokenId>(rows, 0),
                       .positions = std::vector<std::int32_t>(rows),
                       .sequences = std::vector<std::int32_t>(rows, 0),
                       .page_table = PagesOf(s - sequences.begin, pages),
                       .max_pages = static_cast<std::int32_t>(pages),
                       .logit_rows = {}};
      std::iota(places.positions.begin(), places.positions.end(), static_cast<std::int32_t>(begin));
      for (std::int64_t layer = 0; layer < model.layers; ++layer) {
#pragma omp parallel for
        for (std::int64_t i = 0; i < count; ++i) {
          FillToken(KeyOrValue::kKey, layer, s, begin + i, heads, model.head_dim,
                    keys.data() + i * width);
          FillToken(KeyOrValue::kValue, layer, s, begin + i, heads, model.head_dim,
                    values.data() + i * width);
        }
        decoder_.StoreKeysAndValues(layer, places,
                                    HostView(keys, Shape{most, width}).Rows(0, count),
                                    HostView(values, Shape{most, width}).Rows(0, count));
      }
    }
  }
}

// A model of random weights mostly repeats its input: the log probabilities tell much more.
void StepBenchmark::Execute(const StepPlan& plan, Drawn* drawn) {
  std::vector<std::byte> message;
  if (decoder_.mesh().leader()) message = Encode(plan);
  decoder_.mesh().world->Broadcast(message, 0);
  std::int64_t count = 0;
  decoder_.Forward(DecodeStepPlan(message), [&](std::int64_t first, ConstTensorView logits) {
    const std::vector<SampleRow> greedy(static_cast<std::size_t>(logits.size(0)),
                                        {.temperature = 0});
    reader_.Draw(first, logits, greedy);
    count += logits.size(0);
  });
  if (!decoder_.mesh().leader()) return;
  reader_.Finish(count);
  const LogitReader::Results read = reader_.Read();
  for (std::size_t i = 0; i < read.ids.size(); ++i) drawn[i] = {read.ids[i], read.logprobs[i]};
}

// A rank that has waited long looks only now and then whether the others have come: the second time
// none waits long.
void StepBenchmark::Meet() {
  decoder_.mesh().world->Barrier();
  decoder_.mesh().world->Barrier();
}

/// All bytes over the time of the slowest rank; every rank reads as many.
double StepBenchmark::ReadBandwidth() {
  Communicator& world = *decoder_.mesh().world;
  const ConstTensorView memory = decoder_.weight_memory().Rows(0, read_bytes_);
  Stream& stream = decoder_.stream();
  Meet();
  const double mine = stream.device() == Device::kCuda
                          ? gpu_measurements.read_bandwidth(memory, stream)
                          : MeasureReadBandwidth(memory);
  const std::vector<double> all = GatherValues(world, mine);
  return world.size() * *std::min_element(all.begin(), all.end());
}

double StepBenchmark::Peak() {
  Stream& stream = decoder_.stream();
  Meet();
  const double mine = stream.device() == Device::kCuda ? gpu_measurements.peak(expert_type_, stream)
                                                       : MeasurePeak(expert_type_);
  const std::vector<double> all = GatherValues(*decoder_.mesh().world, mine);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

/// Of all ranks and all runs. `touched`: [runs][steps][layers · experts], what the tokens of this
/// rank's data group met.
std::int64_t StepBenchmark::BytesOfRuns(const StepTest& test, std::vector<std::uint8_t> touched) {
  const Mesh& mesh = decoder_.mesh();
  const auto size = static_cast<std::int64_t>(touched.size());
  std::vector<std::uint8_t> groups(touched.size() * static_cast<std::size_t>(mesh.plan.data));
  Stream host;
  mesh.data->AllGatherRows(
      HostView(groups, Shape{mesh.plan.data, size}), HostView(touched, Shape{1, size}),
      std::vector<std::int64_t>(static_cast<std::size_t>(mesh.plan.data), 1), host);
  for (std::size_t i = 0; i < groups.size(); ++i) touched[i % touched.size()] |= groups[i];

  const std::int64_t steps = StepsOf(test);
  const std::size_t step_size = touched.size() / static_cast<std::size_t>(kRuns * steps);
  std::int64_t bytes = 0;
  for (std::int64_t i = 0; i < kRuns * steps; ++i) {
    bytes +=
        work_.Bytes(PlanOf(test, i / steps, i % steps),
                    std::span(touched).subspan(static_cast<std::size_t>(i) * step_size, step_size));
  }
  const std::vector<std::int64_t> all = GatherValues(*mesh.world, bytes);
  return std::accumulate(all.begin(), all.end(), std::int64_t{0});
}

StepResult StepBenchmark::Run(const StepTest& test, const StepProgress& progress) {
  const std::int64_t steps = StepsOf(test);
  const std::int64_t experts = decoder_.model().experts;
  const auto step_size = static_cast<std::size_t>(decoder_.model().layers * experts);
  std::vector<std::uint8_t> touched(static_cast<std::size_t>(kRuns * steps) * step_size);
  std::vector<Drawn> drawn(static_cast<std::size_t>(kRuns * steps * test.batch));
  std::vector<Drawn> warm_up(static_cast<std::size_t>(test.batch));

  FillKeysAndValues(test);
  Execute(PlanOf(test, kWarmUp, 0), warm_up.data());

  std::uint8_t* met = touched.data();
  decoder_.ObserveRouting([&](std::int64_t layer, ConstTensorView topk_ids) {
    const std::int32_t* ids = topk_ids.data<std::int32_t>();
    for (std::int64_t i = 0; i < topk_ids.shape().elements(); ++i)
      met[layer * experts + ids[i]] = 1;
  });
  std::vector<double> seconds;
  std::vector<double> bandwidths{ReadBandwidth()};
  double peak = Peak();
  for (std::int64_t run = 0; run < kRuns; ++run) {
    Meet();
    const Clock::time_point begin = Clock::now();
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::int64_t number = run * steps + step;
      met = touched.data() + static_cast<std::size_t>(number) * step_size;
      Execute(PlanOf(test, run, step), drawn.data() + number * test.batch);
      if (progress) progress(number + 1, kRuns * steps);
    }
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    bandwidths.push_back(ReadBandwidth());
  }
  peak = (peak + Peak()) / 2;
  decoder_.ObserveRouting({});

  const std::int64_t bytes = BytesOfRuns(test, std::move(touched));
  if (!decoder_.mesh().leader()) return {};
  std::int64_t operations = 0;  // of one run
  for (std::int64_t step = 0; step < steps; ++step) {
    operations += work_.Operations(PlanOf(test, 0, step));
  }
  const auto tokens = static_cast<double>(test.tokens * test.batch);
  std::vector<double> rates;
  rates.reserve(seconds.size());
  for (const double one : seconds) rates.push_back(tokens / one);
  const double time = Median(seconds);
  const double bandwidth = Median(bandwidths);
  const double bytes_per_run = static_cast<double>(bytes) / static_cast<double>(kRuns);
  return {.tokens_per_second = tokens / time,
          .stddev = StandardDeviation(rates),
          .bytes_per_step = bytes_per_run / static_cast<double>(steps),
          .read_bandwidth = bandwidth,
          .bandwidth_ratio = bytes_per_run / time / bandwidth,
          .peak = peak,
          .compute_ratio = static_cast<double>(operations) / time / peak,
          .tokens_hash = XXH3_64bits(drawn.data(), drawn.size() * sizeof(Drawn))};
}

}  // namespace jubal

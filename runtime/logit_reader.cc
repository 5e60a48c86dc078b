#include "runtime/logit_reader.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/error.h"
#include "kernels/run.h"

namespace jubal {
namespace {

TensorView LogprobsOf(TensorView results) {
  const TensorView bits = results.Rows(1, 1);
  return {bits.raw(), DType::kF32, Shape{results.size(1)}, bits.device()};
}

}  // namespace

LogitReader::LogitReader(Decoder& decoder) : decoder_(decoder) {
  if (decoder.stream().device() == Device::kCpu) return;
  for (std::unique_ptr<Stream>& arrival : arrivals_) {
    arrival = std::make_unique<Stream>(decoder.stream().gpu());
  }
}

void LogitReader::Draw(std::int64_t first, ConstTensorView logits,
                       std::span<const SampleRow> rows) {
  const Activations& buffers = decoder_.buffers();
  Run(Sample{.ids = IdsOf(buffers.results).Rows(first, logits.size(0)),
             .logprobs = LogprobsOf(buffers.results).Rows(first, logits.size(0)),
             .logits = logits,
             .rows = rows,
             .workspace = buffers.sample_workspace},
      decoder_.stream());
}

void LogitReader::Score(std::int64_t first, ConstTensorView logits,
                        std::span<const TokenId> targets) {
  const Activations& buffers = decoder_.buffers();
  const std::int64_t count = logits.size(0);
  const TensorView ids = buffers.targets.Rows(first, count);
  Run(Copy{.out = ids,
           .x = {reinterpret_cast<const std::byte*>(targets.data()), DType::kI32, Shape{count}}},
      decoder_.stream());
  Run(LogProb{.out = LogprobsOf(buffers.results).Rows(first, count), .logits = logits, .ids = ids},
      decoder_.stream());
}

void LogitReader::Finish(std::int64_t count) {
  Unread step{.count = count, .results = decoder_.buffers().results, .arrival = nullptr};
  if (decoder_.stream().device() == Device::kCpu) {
    CHECK(unread_.empty());
  } else {
    CHECK_LT(unread_.size(), arrivals_.size());
    const std::size_t slot = finished_++ % arrivals_.size();
    const TensorView pinned = decoder_.pinned()[slot].results;
    Run(Copy{.out = pinned.Columns(0, count), .x = step.results.Columns(0, count)},
        decoder_.stream());
    step.results = pinned;
    step.arrival = arrivals_[slot].get();
    step.arrival->queue().WaitFor(decoder_.stream().queue());
  }
  unread_.push_back(step);
}

LogitReader::Results LogitReader::Read() {
  CHECK(!unread_.empty());
  const Unread step = unread_.front();
  unread_.pop_front();
  // A step without entries, part of a long prompt, is not waited for.
  if (step.arrival != nullptr && step.count > 0) decoder_.mesh().world->Wait(*step.arrival);
  const auto count = static_cast<std::size_t>(step.count);
  const Results read{
      .ids = {IdsOf(step.results).Rows(0, step.count).data<std::int32_t>(), count},
      .logprobs = {LogprobsOf(step.results).Rows(0, step.count).data<float>(), count}};
  for (const float logprob : read.logprobs) {
    if (!std::isfinite(logprob)) {
      throw UserError(ExitStatus::kBadData,
                      "the model's logits are not finite: its weights are damaged");
    }
  }
  return read;
}

}  // namespace jubal

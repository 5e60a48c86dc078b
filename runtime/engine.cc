#include "runtime/engine.h"

#include <algorithm>
#include <deque>
#include <utility>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/paged_attention.h"
#include "runtime/logit_reader.h"

namespace jubal {
namespace {

/// Requests that may be open at once, running or waiting.
constexpr std::int64_t kMaxOpenRequests = 4096;

SchedulerLimits LimitsFrom(const Decoder& decoder, const ServingOptions& options) {
  const StepLimits& step = decoder.limits();
  return {.data_groups = decoder.mesh().plan.data,
          .pages_per_group = step.num_pages,
          .max_tokens_per_step = step.max_tokens,
          .prefill_chunk = options.prefill_chunk,
          .max_running = step.max_sequences,
          .max_waiting = kMaxOpenRequests,
          .request = {.vocabulary = decoder.model().vocabulary, .context = step.context}};
}

/// Draws or scores the rows of `logits` that belong to uses [first, first + rows).
void UseLogits(std::span<const LogitUse> uses, std::int64_t first, ConstTensorView logits,
               LogitReader& reader) {
  uses = uses.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(logits.size(0)));
  for (std::size_t begin = 0; begin < uses.size();) {
    std::size_t end = begin + 1;  // of a run of rows of one kind
    while (end < uses.size() && uses[end].sample == uses[begin].sample) ++end;
    const ConstTensorView rows =
        logits.Rows(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end - begin));
    const std::int64_t entry = first + static_cast<std::int64_t>(begin);
    if (uses[begin].sample) {
      std::vector<SampleRow> how;
      for (std::size_t i = begin; i < end; ++i) how.push_back(uses[i].row);
      reader.Draw(entry, rows, how);
    } else {
      std::vector<TokenId> targets;
      for (std::size_t i = begin; i < end; ++i) targets.push_back(*uses[i].target);
      reader.Score(entry, rows, targets);
    }
    begin = end;
  }
}

std::vector<LogitResult> ResultsOf(std::span<const LogitUse> uses,
                                   const LogitReader::Results& read) {
  std::vector<LogitResult> results(uses.size());
  for (std::size_t i = 0; i < uses.size(); ++i) {
    if (uses[i].sample) {
      results[i].token = read.ids[i];
      results[i].logprob = read.logprobs[i];
    } else {
      results[i].target_logprob = read.logprobs[i];
    }
  }
  return results;
}

/// A step of `rows` rows in each data group, in one page; of the last row or of all there are
/// logits.
StepPlan StepOf(int data_groups, std::int64_t rows, bool all_logits) {
  const auto count = static_cast<std::size_t>(rows);
  GroupStep group{.tokens = std::vector<TokenId>(count, 0),
                  .positions = {},
                  .sequences = std::vector<std::int32_t>(count, 0),
                  .page_table = {0},
                  .max_pages = 1,
                  .logit_rows = {}};
  for (std::int32_t row = 0; row < group.num_tokens(); ++row) {
    group.positions.push_back(row % static_cast<std::int32_t>(kPageTokens));
    if (all_logits || row + 1 == group.num_tokens()) group.logit_rows.push_back(row);
  }
  StepPlan plan;
  plan.groups.assign(static_cast<std::size_t>(data_groups), group);
  return plan;
}

}  // namespace

Engine::Engine(Decoder& decoder, const ServingOptions& options)
    : decoder_(decoder), limits_(LimitsFrom(decoder, options)), scheduler_(limits_) {}

void Engine::WarmUp() {
  std::vector<StepPlan> plans{
      StepOf(limits_.data_groups, std::min<std::int64_t>(2, decoder_.limits().max_tokens), false)};
  for (const std::int64_t rows : decoder_.GraphRows()) {
    plans.push_back(StepOf(limits_.data_groups, rows, true));
  }
  const LogitsSink ignore = [](std::int64_t, ConstTensorView) {};
  for (const StepPlan& plan : plans) {
    if (decoder_.mesh().leader()) {
      Execute(plan, /*previous_logit_rows=*/0, ignore);
      continue;
    }
    std::vector<std::byte> message;
    decoder_.mesh().world->Broadcast(message, 0);
    decoder_.Forward(DecodeStepPlan(message), ignore);
  }
  decoder_.Wait();
}

void Engine::Run() {
  if (decoder_.mesh().leader()) {
    Lead();
  } else {
    Follow();
  }
}

// On a GPU the next step is planned, and enqueued, while one runs: its rows go on with tokens that
// the host does not know yet. On a CPU a step is done when Execute returns.
void Engine::Lead() {
  LogitReader reader(decoder_);
  const bool on_gpu = decoder_.stream().device() == Device::kCuda;
  const std::size_t most_in_flight = on_gpu ? Scheduler::kMaxStepsInFlight : 1;
  std::deque<Step> in_flight;
  std::int64_t previous_logit_rows = 0;
  while (TakeMessages(!in_flight.empty())) {
    Step step = scheduler_.PlanStep();
    if (!step.empty()) {
      Execute(step.plan, previous_logit_rows, [&](std::int64_t first, ConstTensorView logits) {
        UseLogits(step.uses, first, logits, reader);
      });
      previous_logit_rows = step.plan.num_logit_rows();
      if (on_gpu) decoder_.ShareDrawn(previous_logit_rows);
      reader.Finish(static_cast<std::int64_t>(step.uses.size()));
      in_flight.push_back(std::move(step));
      if (in_flight.size() < most_in_flight) continue;
    }
    if (in_flight.empty()) continue;
    Complete(in_flight.front(), reader);
    in_flight.pop_front();
  }
  decoder_.Wait();
  std::vector<std::byte> message = Encode(StepPlan{.stop = true, .groups = {}});
  decoder_.mesh().world->Broadcast(message, 0);
}

void Engine::Follow() {
  const bool on_gpu = decoder_.stream().device() == Device::kCuda;
  std::vector<std::byte> message;
  std::int64_t previous_logit_rows = 0;
  while (true) {
    decoder_.mesh().world->Broadcast(message, 0);
    const StepPlan plan = DecodeStepPlan(message, previous_logit_rows);
    if (plan.stop) break;
    decoder_.Forward(plan, nullptr);
    previous_logit_rows = plan.num_logit_rows();
    if (on_gpu) decoder_.ShareDrawn(previous_logit_rows);
  }
  decoder_.Wait();
}

void Engine::Execute(const StepPlan& plan, std::int64_t previous_logit_rows,
                     const LogitsSink& sink) {
  std::vector<std::byte> message = Encode(plan, previous_logit_rows);
  decoder_.mesh().world->Broadcast(message, 0);
  decoder_.Forward(plan, sink);
}

void Engine::Complete(const Step& step, LogitReader& reader) {
  const std::vector<LogitResult> results = ResultsOf(step.uses, reader.Read());
  for (const GenerationEvent& event : scheduler_.CompleteStep(step, results)) Deliver(event);
}

bool Engine::TakeMessages(bool in_flight) {
  std::vector<Message> messages;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] {
      return in_flight || !inbox_.empty() || !scheduler_.idle() || stop_now_ || stop_when_idle_;
    });
    if (stop_now_ || (stop_when_idle_ && inbox_.empty() && scheduler_.idle())) return false;
    messages.swap(inbox_);
  }
  for (Message& message : messages) {
    if (auto* submitted = std::get_if<Submitted>(&message)) {
      sinks_.emplace(submitted->id, std::move(submitted->sink));
      const auto rejection = scheduler_.Submit(submitted->id, std::move(submitted->request));
      CHECK(!rejection.has_value());  // Submit held it against the same limits
    } else {
      const RequestId id = std::get<Cancelled>(message).id;
      scheduler_.Cancel(id);
      if (sinks_.erase(id) > 0) {
        const std::lock_guard lock(mutex_);
        --open_;
      }
    }
  }
  return true;
}

void Engine::Deliver(const GenerationEvent& event) {
  const auto sink = sinks_.find(event.id);
  CHECK(sink != sinks_.end());
  sink->second(event);
  if (event.finish.has_value()) {
    sinks_.erase(sink);
    const std::lock_guard lock(mutex_);
    --open_;
  }
}

std::optional<Rejection> Engine::Submit(RequestId id, GenerationRequest request, EventSink sink) {
  CHECK(decoder_.mesh().leader());
  if (auto rejection = Validate(request, limits_.request)) return rejection;
  const std::lock_guard lock(mutex_);
  if (open_ >= kMaxOpenRequests) {
    return Rejection{Rejection::Reason::kQueueFull, "",
                     fmt::format("{} requests are open already", open_)};
  }
  ++open_;
  inbox_.emplace_back(Submitted{id, std::move(request), std::move(sink)});
  wake_.notify_one();
  return std::nullopt;
}

void Engine::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  inbox_.emplace_back(Cancelled{id});
  wake_.notify_one();
}

void Engine::StopNow() {
  const std::lock_guard lock(mutex_);
  stop_now_ = true;
  wake_.notify_one();
}

void Engine::StopWhenIdle() {
  const std::lock_guard lock(mutex_);
  stop_when_idle_ = true;
  wake_.notify_one();
}

}  // namespace jubal

#include "runtime/engine.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/error.h"
#include "kernels/run.h"
#include "kernels/sample.h"

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

TensorView HostRow(std::vector<std::int32_t>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), DType::kI32,
          Shape{static_cast<std::int64_t>(values.size())}};
}

TensorView HostRow(std::vector<float>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), DType::kF32,
          Shape{static_cast<std::int64_t>(values.size())}};
}

/// Draws or scores the rows of `logits` that belong to uses [first, first + rows).
void UseLogits(std::span<const LogitUse> uses, ConstTensorView logits, TensorView workspace,
               std::span<LogitResult> results, Stream& stream) {
  for (std::size_t begin = 0; begin < uses.size();) {
    std::size_t end = begin + 1;  // of a run of rows of one kind
    while (end < uses.size() && uses[end].sample == uses[begin].sample) ++end;
    const ConstTensorView rows =
        logits.Rows(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end - begin));
    std::vector<std::int32_t> ids(end - begin);
    std::vector<float> logprobs(end - begin);
    if (uses[begin].sample) {
      std::vector<SampleRow> how;
      for (std::size_t i = begin; i < end; ++i) how.push_back(uses[i].row);
      Run(Sample{.ids = HostRow(ids),
                 .logprobs = HostRow(logprobs),
                 .logits = rows,
                 .rows = how,
                 .workspace = workspace},
          stream);
    } else {
      for (std::size_t i = begin; i < end; ++i) ids[i - begin] = *uses[i].target;
      Run(LogProb{.out = HostRow(logprobs), .logits = rows, .ids = HostRow(ids)}, stream);
    }
    for (std::size_t i = begin; i < end; ++i) {
      const float logprob = logprobs[i - begin];
      if (!std::isfinite(logprob)) {
        throw UserError(ExitStatus::kBadData,
                        "the model's logits are not finite: its weights are damaged");
      }
      if (uses[i].sample) {
        results[i].token = ids[i - begin];
        results[i].logprob = logprob;
      } else {
        results[i].target_logprob = logprob;
      }
    }
    begin = end;
  }
}

}  // namespace

Engine::Engine(Decoder& decoder, const ServingOptions& options)
    : decoder_(decoder), limits_(LimitsFrom(decoder, options)), scheduler_(limits_) {}

void Engine::WarmUp() {
  if (!decoder_.mesh().leader()) {
    std::vector<std::byte> message;
    decoder_.mesh().world->Broadcast(message, 0);
    decoder_.Forward(DecodeStepPlan(message), [](std::int64_t, ConstTensorView) {});
    return;
  }
  const GroupStep one_token{.tokens = {0},
                            .positions = {0},
                            .sequences = {0},
                            .page_table = {0},
                            .max_pages = 1,
                            .logit_rows = {0}};
  StepPlan plan;
  plan.groups.assign(static_cast<std::size_t>(limits_.data_groups), one_token);
  Execute(plan, [](std::int64_t, ConstTensorView) {});
}

void Engine::Run() {
  if (decoder_.mesh().leader()) {
    Lead();
  } else {
    Follow();
  }
}

void Engine::Lead() {
  std::vector<LogitResult> results;
  while (TakeMessages()) {
    const Step step = scheduler_.PlanStep();
    if (step.empty()) continue;
    results.assign(step.uses.size(), {});
    Execute(step.plan, [&](std::int64_t first, ConstTensorView logits) {
      const auto begin = static_cast<std::size_t>(first);
      const auto rows = static_cast<std::size_t>(logits.size(0));
      UseLogits(std::span(step.uses).subspan(begin, rows), logits, decoder_.sample_workspace(),
                std::span(results).subspan(begin, rows), decoder_.stream());
    });
    for (const GenerationEvent& event : scheduler_.CompleteStep(step, results)) Deliver(event);
  }
  std::vector<std::byte> message = Encode(StepPlan{.stop = true, .groups = {}});
  decoder_.mesh().world->Broadcast(message, 0);
}

void Engine::Follow() {
  std::vector<std::byte> message;
  while (true) {
    decoder_.mesh().world->Broadcast(message, 0);
    const StepPlan plan = DecodeStepPlan(message);
    if (plan.stop) return;
    decoder_.Forward(plan, nullptr);
  }
}

void Engine::Execute(const StepPlan& plan, const LogitsSink& sink) {
  std::vector<std::byte> message = Encode(plan);
  decoder_.mesh().world->Broadcast(message, 0);
  decoder_.Forward(plan, sink);
}

bool Engine::TakeMessages() {
  std::vector<Message> messages;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] {
      return !inbox_.empty() || !scheduler_.idle() || stop_now_ || stop_when_idle_;
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

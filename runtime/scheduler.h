#ifndef JUBAL_RUNTIME_SCHEDULER_H_
#define JUBAL_RUNTIME_SCHEDULER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/sample.h"
#include "runtime/request.h"
#include "runtime/step_plan.h"

namespace jubal {

struct SchedulerLimits {
  int data_groups = 1;
  std::int64_t pages_per_group = 0;      // KV pages of each data group, kPageTokens tokens each
  std::int64_t max_tokens_per_step = 0;  // of one data group
  std::int64_t prefill_chunk = 0;        // most prompt tokens of one request in one step
  std::int64_t max_running = 0;          // requests of one data group in one step
  std::int64_t max_waiting = 0;
  RequestLimits request;
};

/// What the leader does with one row of logits.
struct LogitUse {
  RequestId request = 0;
  bool sample = false;            // draw the next token with `row`
  SampleRow row;                  // views of the request's state: valid until CompleteStep
  std::optional<TokenId> target;  // score: report ln p of this token
};

/// One planned step: what all ranks execute, and what the leader does with the logits.
struct Step {
  std::uint64_t number = 0;  // of those that are not empty, from 1; 0 when empty
  StepPlan plan;
  std::vector<LogitUse> uses;  // for each group in turn, one per entry of its logit_rows

  bool empty() const;  // nothing to compute
};

/// What became of one entry of Step::uses.
struct LogitResult {
  TokenId token = 0;            // drawn, when sample
  float logprob = 0.0f;         // of the drawn token
  float target_logprob = 0.0f;  // of the target, when there is one
};

/// Decides what each step computes. Host code only: no device, no network, no clock, no thread, so
/// a test replays any traffic exactly.
///
/// A request goes waiting → running → finished, on one data group, the least loaded when it starts.
/// When the pages of a group run out, its youngest request goes back to the waiting ones, before
/// all that have not run yet: it keeps its tokens but loses its KV pages. Its state is recomputed
/// later, to the same bits.
///
/// Looking ahead: while a step is in flight (planned, not completed) the next one may be planned,
/// so that the host's work hides behind the device's. A request that draws in the step in flight
/// goes on in the next with a pending token (PendingToken), or gives up its place and its pages if
/// max_tokens makes that draw its last. Should the token turn out to end it, its row in the next
/// step was computed for nothing, and that result is skipped. Tokens and log probabilities are
/// those of a scheduler that does not look ahead.
///
/// Pages are free as soon as no further step needs them, though steps in flight may still read and
/// write them: devices must execute steps in the order in which they were planned.
class Scheduler {
 public:
  static constexpr std::size_t kMaxStepsInFlight = 2;

  explicit Scheduler(const SchedulerLimits& limits);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Queues the request, or says why it could never run or cannot wait.
  std::optional<Rejection> Submit(RequestId id, GenerationRequest request);

  /// Ends the request in whatever state it is; its pages are free for the next step. Unknown ids
  /// are ignored, since it may have finished.
  void Cancel(RequestId id);

  /// The next step: running requests first, decodes before prompts, then waiting ones in order of
  /// arrival. Empty when there is nothing to do. Every step makes progress.
  ///
  /// At most kMaxStepsInFlight steps may be in flight; an empty one is not. When one is already,
  /// the next is also empty where it cannot be planned before that one is completed: all requests
  /// end with it, or one with penalties draws in it, whose next draw depends on the token. Such a
  /// request holds up the others for the host's part of a step, which is little; if instead it sat
  /// out every other step, it would take twice as long.
  Step PlanStep();

  /// Takes the results of the step that was planned first of those in flight, one per entry of
  /// step.uses. Requests that have ended meanwhile are skipped.
  std::vector<GenerationEvent> CompleteStep(const Step& step, std::span<const LogitResult> results);

  bool idle() const;  // no request is waiting or running
  std::int64_t num_waiting() const;
  std::int64_t num_running() const;
  std::int64_t free_pages(int data_group) const;
  std::int64_t preemptions() const;  // so far

 private:
  struct Request;
  struct Group;
  using ByArrival = std::map<std::uint64_t, Request*>;  // the oldest first

  /// A step that was planned and is not completed.
  struct InFlight {
    std::uint64_t number = 0;
    std::vector<RequestId> scored;                // end with it, without a draw
    std::vector<std::unique_ptr<Request>> ended;  // while it was the last; it may view them
  };

  bool NeedsDrawsInFlight() const;
  void DropComputed(Group& group);
  void PlanRunning(Group& group);
  void Admit();
  Group* GroupFor(const Request& request);
  bool TakePages(Group& group, Request& request);
  void DropPages(Request& request);
  void Preempt(Request& request);
  void Forget(Request& request);
  GenerationEvent Accept(Request& request, const LogitResult& result);

  SchedulerLimits limits_;
  std::vector<Group> groups_;
  std::map<RequestId, std::unique_ptr<Request>> requests_;  // all that have not ended
  ByArrival waiting_;
  std::deque<InFlight> in_flight_;  // the first planned first
  std::uint64_t planned_ = 0;       // steps that were not empty
  std::uint64_t arrivals_ = 0;
  std::int64_t preemptions_ = 0;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_SCHEDULER_H_

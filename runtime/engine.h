#ifndef JUBAL_RUNTIME_ENGINE_H_
#define JUBAL_RUNTIME_ENGINE_H_

#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <variant>
#include <vector>

#include "runtime/decoder.h"
#include "runtime/request.h"
#include "runtime/scheduler.h"

namespace jubal {

class LogitReader;

/// Generates text on one rank of many. Every rank constructs an Engine and calls WarmUp(), then
/// Run(), on one thread.
///
/// World rank 0, the leader, schedules: each step it broadcasts a StepPlan, all ranks execute it,
/// and the leader samples. The others only follow. Submit, Cancel and the Stop methods are
/// thread-safe and for the leader; on another rank they are a bug.
class Engine {
 public:
  /// `decoder` must outlive the engine.
  Engine(Decoder& decoder, const ServingOptions& options);

  /// A step of every kind on all ranks, so that every page of code and every connection has been
  /// used once, and a GPU's graphs are recorded. Collective.
  void WarmUp();

  /// Serves until stopped, then returns on every rank. Throws CommunicationError, or UserError when
  /// the weights turn out to be damaged; the caller must then end the job, not retry.
  void Run();

  /// Queues the request, or says why not. `sink` is called on Run's thread for each event and must
  /// not block; it is dropped after the last one.
  std::optional<Rejection> Submit(RequestId id, GenerationRequest request, EventSink sink);

  /// Ends the request without further events; its pages are free at the next step. Ids that are
  /// unknown or finished are ignored.
  void Cancel(RequestId id);

  /// Run returns after the step under way, whatever is left undone.
  void StopNow();
  /// Run returns when nothing is waiting or running.
  void StopWhenIdle();

  /// Requests that lost their pages to others, so far. Leader, outside Run.
  std::int64_t preemptions() const { return scheduler_.preemptions(); }
  const RequestLimits& request_limits() const { return limits_.request; }

 private:
  struct Submitted {
    RequestId id;
    GenerationRequest request;
    EventSink sink;
  };
  struct Cancelled {
    RequestId id;
  };
  using Message = std::variant<Submitted, Cancelled>;

  void Lead();
  void Follow();
  /// Sleeps while there is nothing to do, unless a step is in flight. False when it is time to
  /// stop.
  bool TakeMessages(bool in_flight);
  /// `previous_logit_rows`: of the step before, whose draws the plan may refer to.
  void Execute(const StepPlan& plan, std::int64_t previous_logit_rows, const LogitsSink& sink);
  void Complete(const Step& step, LogitReader& reader);
  void Deliver(const GenerationEvent& event);

  Decoder& decoder_;
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  std::unordered_map<RequestId, EventSink> sinks_;

  std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::vector<Message> inbox_;
  std::int64_t open_ = 0;  // requests submitted and neither finished nor cancelled
  bool stop_now_ = false;
  bool stop_when_idle_ = false;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_ENGINE_H_

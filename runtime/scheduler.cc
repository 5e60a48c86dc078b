#include "runtime/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <unordered_map>
#include <utility>

#include "kernels/check.h"
#include "kernels/paged_attention.h"
#include "runtime/kv_pages.h"

namespace jubal {
namespace {

std::int64_t PagesFor(std::int64_t tokens) { return DivideUp(tokens, kPageTokens); }

/// Distinct tokens in order of first appearance, and how often each came.
class TokenTally {
 public:
  void Add(TokenId token) {
    const auto [place, is_new] = places_.try_emplace(token, tokens_.size());
    if (is_new) {
      tokens_.push_back(token);
      counts_.push_back(0);
    }
    ++counts_[place->second];
  }

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::span<const std::int32_t> counts() const { return counts_; }

 private:
  std::unordered_map<TokenId, std::size_t> places_;  // looked up, never walked: its order is chance
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> counts_;
};

}  // namespace

struct Scheduler::Request {
  RequestId id = 0;
  std::uint64_t arrival = 0;
  SamplingParams sampling;
  std::vector<TokenId> stop_ids;
  std::int64_t max_tokens = 0;
  bool scores_prompt = false;

  std::vector<TokenId> tokens;  // the prompt, then what was generated
  std::int64_t prompt_size = 0;
  std::int64_t scored = 0;             // prompt tokens whose logprob was asked for, ever
  std::vector<float> prompt_logprobs;  // those not delivered yet
  TokenTally seen;                     // empty unless a penalty reads it
  TokenTally produced;                 // likewise
  std::int64_t draws_in_flight = 0;    // tokens that steps in flight will add
  std::int64_t last_draw = 0;          // the entry of its step's uses that drew last

  // While running:
  Group* group = nullptr;
  std::vector<std::int32_t> pages;
  std::int64_t computed = 0;  // tokens whose keys and values are in the pages
  std::int64_t piece = 0;     // tokens of this step

  Request(RequestId request_id, std::uint64_t arrival_number, GenerationRequest request)
      : id(request_id),
        arrival(arrival_number),
        sampling(request.sampling),
        stop_ids(std::move(request.stop_ids)),
        max_tokens(request.max_tokens),
        scores_prompt(request.prompt_logprobs),
        tokens(std::move(request.prompt)),
        prompt_size(size()) {
    for (const TokenId token : tokens) Tally(token, /*is_output=*/false);
  }

  std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t held() const { return static_cast<std::int64_t>(pages.size()); }
  std::int64_t length() const { return size() + draws_in_flight; }

  /// Tokens to compute, known or pending; not the last that may be drawn, which nothing follows.
  std::int64_t remaining() const {
    return std::min(length(), prompt_size + std::max<std::int64_t>(max_tokens - 1, 0)) - computed;
  }

  /// Pages it should find on a group: for the tokens it has and one to grow into, but no more than
  /// it can ever fill.
  std::int64_t wanted() const {
    return std::min(PagesFor(length()) + 1, PagesFor(prompt_size + max_tokens));
  }

  bool has_penalties() const {
    return sampling.repetition_penalty != 1.0f || sampling.presence_penalty != 0.0f ||
           sampling.frequency_penalty != 0.0f;
  }

  TokenId TokenAt(std::int64_t position) const {
    return position < size() ? tokens[static_cast<std::size_t>(position)] : PendingToken(last_draw);
  }

  void Tally(TokenId token, bool is_output) {
    if (sampling.repetition_penalty != 1.0f) seen.Add(token);
    const bool counts = sampling.presence_penalty != 0.0f || sampling.frequency_penalty != 0.0f;
    if (is_output && counts) produced.Add(token);
  }

  SampleRow Row() const {
    return {.temperature = sampling.temperature,
            .top_k = sampling.top_k,
            .top_p = sampling.top_p,
            .min_p = sampling.min_p,
            .presence_penalty = sampling.presence_penalty,
            .frequency_penalty = sampling.frequency_penalty,
            .repetition_penalty = sampling.repetition_penalty,
            .seed = sampling.seed,
            .position = static_cast<std::uint64_t>(length()),
            .seen = seen.tokens(),
            .produced = produced.tokens(),
            .produced_counts = produced.counts()};
  }

  /// What the leader wants of the row at this position, if anything: a draw from the last row, and
  /// a score from each row before the prompt's last that was not asked for it before a preemption.
  std::optional<LogitUse> UseOf(std::int64_t position) const {
    if (position == length() - 1 && max_tokens > 0) {
      return LogitUse{.request = id, .sample = true, .row = Row(), .target = std::nullopt};
    }
    if (scores_prompt && position >= scored && position < prompt_size - 1) {
      return LogitUse{.request = id,
                      .sample = false,
                      .row = {},
                      .target = tokens[static_cast<std::size_t>(position + 1)]};
    }
    return std::nullopt;
  }
};

struct Scheduler::Group {
  explicit Group(std::int64_t num_pages) : pages(num_pages) {}

  KvPages pages;
  ByArrival running;
  std::int64_t rows_left = 0;  // of the step being planned

  std::int64_t num_running() const { return static_cast<std::int64_t>(running.size()); }

  /// Free pages that the running requests do not want for themselves. Admission keeps to these, so
  /// that a newcomer is not thrown out again by the next page that an older request fills.
  std::int64_t Spare() const {
    std::int64_t spare = pages.num_free();
    for (const auto& [arrival, request] : running) spare -= request->wanted() - request->held();
    return spare;
  }

  /// Adds this step's rows of all requests that have some, decodes first.
  void WriteRows(GroupStep& rows, std::vector<LogitUse>& uses) const {
    std::vector<Request*> present;
    for (const bool decodes : {true, false}) {
      for (const auto& [arrival, request] : running) {
        if (request->piece > 0 && (request->remaining() == 1) == decodes) {
          present.push_back(request);
        }
      }
    }
    std::size_t max_pages = 0;
    for (const Request* request : present) max_pages = std::max(max_pages, request->pages.size());
    rows.max_pages = static_cast<std::int32_t>(max_pages);
    rows.page_table.assign(present.size() * max_pages, 0);
    for (std::size_t sequence = 0; sequence < present.size(); ++sequence) {
      Request& request = *present[sequence];
      std::ranges::copy(request.pages, rows.page_table.begin() +
                                           static_cast<std::ptrdiff_t>(sequence * max_pages));
      for (std::int64_t i = request.computed; i < request.computed + request.piece; ++i) {
        rows.tokens.push_back(request.TokenAt(i));
        if (std::optional<LogitUse> use = request.UseOf(i)) {
          if (use->sample) {
            request.last_draw = static_cast<std::int64_t>(uses.size());
            ++request.draws_in_flight;
          } else {
            ++request.scored;
          }
          rows.logit_rows.push_back(rows.num_tokens() - 1);
          uses.push_back(*use);
        }
        rows.positions.push_back(static_cast<std::int32_t>(i));
        rows.sequences.push_back(static_cast<std::int32_t>(sequence));
      }
    }
    for (Request* request : present) request->computed += request->piece;
  }
};

bool Step::empty() const {
  return std::ranges::all_of(plan.groups,
                             [](const GroupStep& group) { return group.tokens.empty(); });
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits) {
  CHECK_GE(limits.data_groups, 1);
  CHECK_GE(limits.pages_per_group, 1);
  CHECK_GE(limits.max_tokens_per_step, 1);
  CHECK_GE(limits.prefill_chunk, 1);
  CHECK_GE(limits.max_running, 1);
  CHECK_GE(limits.max_waiting, 1);
  CHECK_LE(limits.request.context, std::numeric_limits<std::int32_t>::max());  // positions are i32
  // No more may run than have a row each, or decodes could keep an older prompt from advancing.
  limits_.max_running = std::min(limits.max_running, limits.max_tokens_per_step);
  groups_.reserve(static_cast<std::size_t>(limits.data_groups));
  for (int i = 0; i < limits.data_groups; ++i) groups_.emplace_back(limits.pages_per_group);
}

Scheduler::~Scheduler() = default;

std::optional<Rejection> Scheduler::Submit(RequestId id, GenerationRequest request) {
  CHECK(!requests_.contains(id));
  if (auto rejection = Validate(request, limits_.request)) return rejection;

  // The context bounds both terms, so the sum cannot overflow.
  const auto prompt_size = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t room = limits_.pages_per_group * kPageTokens;
  if (prompt_size + request.max_tokens > room) {
    return Rejection{Rejection::Reason::kTooLarge, prompt_size > room ? "prompt" : "max_tokens",
                     fmt::format("prompt has {} tokens and max_tokens is {}, but the KV pages of "
                                 "this server hold {} tokens.",
                                 prompt_size, request.max_tokens, room)};
  }
  if (num_waiting() >= limits_.max_waiting) {
    return Rejection{Rejection::Reason::kQueueFull, "",
                     fmt::format("{} requests are waiting already, and {} may.", num_waiting(),
                                 limits_.max_waiting)};
  }
  auto accepted = std::make_unique<Request>(id, arrivals_++, std::move(request));
  waiting_.emplace(accepted->arrival, accepted.get());
  requests_.emplace(id, std::move(accepted));
  return std::nullopt;
}

void Scheduler::Cancel(RequestId id) {
  const auto found = requests_.find(id);
  if (found != requests_.end()) Forget(*found->second);
}

Step Scheduler::PlanStep() {
  CHECK_LT(in_flight_.size(), kMaxStepsInFlight);
  Step step;
  step.plan.groups.resize(groups_.size());
  if (NeedsDrawsInFlight()) return step;
  for (Group& group : groups_) {
    DropComputed(group);
    PlanRunning(group);
  }
  Admit();

  for (std::size_t i = 0; i < groups_.size(); ++i) {
    groups_[i].WriteRows(step.plan.groups[i], step.uses);
  }
  if (in_flight_.empty()) CHECK_EQ(step.empty(), idle());  // every step makes progress
  if (step.empty()) return step;

  step.number = ++planned_;
  InFlight& in_flight = in_flight_.emplace_back();
  in_flight.number = step.number;
  for (const Group& group : groups_) {
    for (const auto& [arrival, request] : group.running) {
      if (request->max_tokens == 0 && request->remaining() == 0) {
        in_flight.scored.push_back(request->id);
      }
    }
  }
  return step;
}

/// Whether a request must know the token that a step in flight draws before it draws the next.
bool Scheduler::NeedsDrawsInFlight() const {
  return std::ranges::any_of(groups_, [](const Group& group) {
    return std::ranges::any_of(group.running, [](const auto& entry) {
      const Request& request = *entry.second;
      return request.draws_in_flight > 0 && request.has_penalties() && request.remaining() > 0;
    });
  });
}

/// Takes those off the group whose last row is in flight.
void Scheduler::DropComputed(Group& group) {
  for (auto next = group.running.begin(); next != group.running.end();) {
    Request& request = *(next++)->second;
    if (request.remaining() == 0) DropPages(request);
  }
}

/// Gives the running requests of the group their rows and pages.
void Scheduler::PlanRunning(Group& group) {
  group.rows_left = limits_.max_tokens_per_step;
  for (const auto& [arrival, request] : group.running) {
    request->piece = request->remaining() == 1 ? 1 : 0;
    group.rows_left -= request->piece;
  }
  for (const auto& [arrival, request] : group.running) {
    if (request->piece > 0) continue;
    request->piece = std::min({request->remaining(), limits_.prefill_chunk, group.rows_left});
    group.rows_left -= request->piece;
  }

  // The oldest takes its pages first and the youngest gives them up, so no request loses pages
  // after it was granted some for this step, and the oldest always advances: alone, it fits.
  for (auto next = group.running.begin(); next != group.running.end();) {
    Request& request = *next->second;
    bool preempted_itself = false;
    while (!preempted_itself && !TakePages(group, request)) {
      Request& youngest = *group.running.rbegin()->second;
      preempted_itself = &youngest == &request;
      Preempt(youngest);
    }
    next = preempted_itself ? group.running.end() : std::next(next);
  }
}

/// Starts waiting requests in order of arrival. The first that finds no room holds up the others:
/// a large one would otherwise wait for as long as small ones come.
void Scheduler::Admit() {
  while (!waiting_.empty()) {
    Request& request = *waiting_.begin()->second;
    Group* group = GroupFor(request);
    if (group == nullptr) return;
    waiting_.erase(waiting_.begin());
    group->running.emplace(request.arrival, &request);
    request.group = group;
    request.piece = std::min({request.remaining(), limits_.prefill_chunk, group->rows_left});
    group->rows_left -= request.piece;
    CHECK(TakePages(*group, request));
  }
}

/// The group with the most spare pages of those where the request can start now, if any.
Scheduler::Group* Scheduler::GroupFor(const Request& request) {
  Group* best = nullptr;
  std::int64_t best_spare = 0;
  for (Group& group : groups_) {
    if (group.rows_left == 0 || group.num_running() == limits_.max_running) continue;
    const std::int64_t spare = group.Spare();
    if (spare < request.wanted()) continue;  // on an idle group any request finds enough
    if (best == nullptr || spare > best_spare ||
        (spare == best_spare && group.num_running() < best->num_running())) {
      best = &group;
      best_spare = spare;
    }
  }
  return best;
}

/// Takes the pages that the request's piece needs, all or none.
bool Scheduler::TakePages(Group& group, Request& request) {
  const std::int64_t needed = PagesFor(request.computed + request.piece);
  if (needed - request.held() > group.pages.num_free()) return false;
  while (request.held() < needed) request.pages.push_back(group.pages.Allocate());
  return true;
}

/// Takes a running request off its group. Steps in flight may still use its pages: those that get
/// the pages next come after them on every device.
void Scheduler::DropPages(Request& request) {
  request.group->pages.Free(request.pages);
  request.group->running.erase(request.arrival);
  request.group = nullptr;
  request.pages.clear();
  request.computed = 0;
  request.piece = 0;
}

void Scheduler::Preempt(Request& request) {
  DropPages(request);
  waiting_.emplace(request.arrival, &request);
  ++preemptions_;
}

/// Removes a request that has ended; `request` is gone unless a step is in flight.
void Scheduler::Forget(Request& request) {
  if (request.group != nullptr) {
    DropPages(request);
  } else {
    waiting_.erase(request.arrival);
  }
  const auto found = requests_.find(request.id);
  if (!in_flight_.empty()) in_flight_.back().ended.push_back(std::move(found->second));
  requests_.erase(found);
}

std::vector<GenerationEvent> Scheduler::CompleteStep(const Step& step,
                                                     std::span<const LogitResult> results) {
  CHECK_EQ(results.size(), step.uses.size());
  if (step.empty()) return {};
  CHECK(!in_flight_.empty());
  CHECK_EQ(step.number, in_flight_.front().number);
  std::vector<GenerationEvent> events;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const LogitUse& use = step.uses[i];
    const auto found = requests_.find(use.request);
    if (found == requests_.end()) continue;  // ended
    Request& request = *found->second;
    if (use.target.has_value()) {
      request.prompt_logprobs.push_back(results[i].target_logprob);
    }
    if (use.sample) {
      events.push_back(Accept(request, results[i]));
      if (events.back().finish.has_value()) Forget(request);
    }
  }

  for (const RequestId id : in_flight_.front().scored) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;  // cancelled
    Request& request = *found->second;
    events.push_back({.id = id,
                      .prompt_logprobs = std::move(request.prompt_logprobs),
                      .token = std::nullopt,
                      .logprob = 0.0f,
                      .finish = FinishReason::kLength});
    Forget(request);
  }
  in_flight_.pop_front();
  return events;
}

/// Adds the drawn token to the request.
GenerationEvent Scheduler::Accept(Request& request, const LogitResult& result) {
  CHECK_GE(result.token, 0);
  CHECK_LT(result.token, limits_.request.vocabulary);
  request.tokens.push_back(result.token);
  --request.draws_in_flight;
  request.Tally(result.token, /*is_output=*/true);
  GenerationEvent event{.id = request.id,
                        .prompt_logprobs = std::exchange(request.prompt_logprobs, {}),
                        .token = result.token,
                        .logprob = result.logprob,
                        .finish = std::nullopt};
  if (std::ranges::find(request.stop_ids, result.token) != request.stop_ids.end()) {
    event.finish = FinishReason::kStop;
  } else if (request.size() - request.prompt_size == request.max_tokens) {
    event.finish = FinishReason::kLength;
  }
  return event;
}

bool Scheduler::idle() const { return requests_.empty(); }

std::int64_t Scheduler::num_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }

std::int64_t Scheduler::num_running() const {
  return static_cast<std::int64_t>(requests_.size()) - num_waiting();
}

std::int64_t Scheduler::free_pages(int data_group) const {
  return groups_.at(static_cast<std::size_t>(data_group)).pages.num_free();
}

std::int64_t Scheduler::preemptions() const { return preemptions_; }

}  // namespace jubal

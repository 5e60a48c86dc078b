#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/paged_attention.h"

namespace jubal {
namespace {

constexpr std::int64_t kVocabulary = 50;  // small, so that tokens repeat and stop ids are met

std::uint64_t Mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9E3779B97F4A7C15u + b + 1;  // splitmix64's finish
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// A model whose "logits" after a sequence are a hash of all its tokens.
std::uint64_t HashOf(std::span<const TokenId> tokens) {
  std::uint64_t hash = 1;
  for (const TokenId token : tokens) hash = Mix(hash, static_cast<std::uint64_t>(token));
  return hash;
}

TokenId Draw(std::uint64_t logits, const SampleRow& row) {
  std::uint64_t hash = Mix(Mix(logits, row.seed), row.position);
  // Sums, since the order within the spans means nothing.
  std::uint64_t seen = 0;
  for (const std::int32_t token : row.seen) seen += Mix(2, static_cast<std::uint64_t>(token));
  std::uint64_t produced = 0;
  for (std::size_t i = 0; i < row.produced.size(); ++i) {
    produced += Mix(static_cast<std::uint64_t>(row.produced[i]),
                    static_cast<std::uint64_t>(row.produced_counts[i]));
  }
  hash = Mix(Mix(hash, seen), produced);
  return static_cast<TokenId>(hash % kVocabulary);
}

float LogProbOf(std::uint64_t logits, TokenId token) {
  return -static_cast<float>(Mix(logits, static_cast<std::uint64_t>(token)) % 4096) / 256.0f;
}

struct Outcome {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  std::optional<FinishReason> finish;

  bool operator==(const Outcome&) const = default;
};

/// What the request must give, whatever else the server does: computed alone, from scratch.
Outcome Expected(const GenerationRequest& request) {
  Outcome outcome;
  std::vector<TokenId> all = request.prompt;
  if (request.prompt_logprobs) {
    for (std::size_t i = 0; i + 1 < all.size(); ++i) {
      const std::uint64_t logits = HashOf(std::span(all).first(i + 1));
      outcome.prompt_logprobs.push_back(LogProbOf(logits, all[i + 1]));
    }
  }
  const SamplingParams& p = request.sampling;
  while (!outcome.finish.has_value()) {
    if (static_cast<std::int64_t>(outcome.tokens.size()) == request.max_tokens) {
      outcome.finish = FinishReason::kLength;
      break;
    }
    std::vector<std::int32_t> seen;
    std::vector<std::int32_t> produced;
    std::vector<std::int32_t> counts;
    if (p.repetition_penalty != 1.0f) {
      const std::set<std::int32_t> distinct(all.begin(), all.end());
      seen.assign(distinct.begin(), distinct.end());
    }
    if (p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f) {
      std::map<std::int32_t, std::int32_t> tally;
      for (const TokenId token : outcome.tokens) ++tally[token];
      for (const auto& [token, count] : tally) {
        produced.push_back(token);
        counts.push_back(count);
      }
    }
    SampleRow row;
    row.seed = p.seed;
    row.position = all.size();
    row.seen = seen;
    row.produced = produced;
    row.produced_counts = counts;
    const std::uint64_t logits = HashOf(all);
    const TokenId token = Draw(logits, row);
    outcome.tokens.push_back(token);
    outcome.logprobs.push_back(LogProbOf(logits, token));
    all.push_back(token);
    if (std::ranges::count(request.stop_ids, token) > 0) outcome.finish = FinishReason::kStop;
  }
  return outcome;
}

/// The ranks of one data group: knows of the requests only what stands in its pages.
class FakeGroup {
 public:
  explicit FakeGroup(std::int64_t num_pages)
      : slots_(static_cast<std::size_t>(num_pages * kPageTokens)) {}

  /// One hash per logit row. `drawn` are the tokens of the previous step's uses.
  std::vector<std::uint64_t> Execute(const GroupStep& step,
                                     const std::vector<std::optional<TokenId>>& drawn) {
    std::map<std::int32_t, std::int32_t> owners;  // page → sequence
    for (std::int32_t row = 0; row < step.num_tokens(); ++row) {
      const std::int32_t sequence = step.sequences[Index(row)];
      for (std::int32_t i = 0; i <= step.positions[Index(row)] / kPageTokens; ++i) {
        const std::int32_t page = step.page_table[Index(sequence * step.max_pages + i)];
        EXPECT_EQ(owners.emplace(page, sequence).first->second, sequence) << "page " << page;
      }
      TokenId token = step.tokens[Index(row)];
      if (IsPending(token)) token = drawn.at(static_cast<std::size_t>(UseOfPending(token))).value();
      slots_.at(SlotOf(step, sequence, step.positions[Index(row)])) = {
          .token = token, .position = step.positions[Index(row)]};
    }
    std::vector<std::uint64_t> logits;
    for (const std::int32_t row : step.logit_rows) {
      std::vector<TokenId> tokens;
      for (std::int32_t position = 0; position <= step.positions[Index(row)]; ++position) {
        const Slot& slot = slots_.at(SlotOf(step, step.sequences[Index(row)], position));
        EXPECT_EQ(slot.position, position) << "overwritten or never written";
        tokens.push_back(slot.token);
      }
      logits.push_back(HashOf(tokens));
    }
    return logits;
  }

 private:
  struct Slot {
    TokenId token = -1;
    std::int32_t position = -1;
  };

  static std::size_t Index(std::int32_t i) { return static_cast<std::size_t>(i); }

  static std::size_t SlotOf(const GroupStep& step, std::int32_t sequence, std::int32_t position) {
    const auto page = static_cast<std::size_t>(step.page_table.at(
        Index(sequence * step.max_pages + position / static_cast<std::int32_t>(kPageTokens))));
    return page * kPageTokens + Index(position) % kPageTokens;
  }

  std::vector<Slot> slots_;
};

/// A server with the fake model: runs steps, holds them against the limits, collects the events.
/// Its devices execute a step as soon as it is launched; the scheduler learns the results later.
class Server {
 public:
  explicit Server(const SchedulerLimits& limits) : limits_(limits), scheduler_(limits) {
    for (int i = 0; i < limits.data_groups; ++i) groups_.emplace_back(limits.pages_per_group);
  }

  Scheduler& scheduler() { return scheduler_; }
  const std::map<RequestId, Outcome>& outcomes() const { return outcomes_; }

  /// Expects that the request is taken; returns its id.
  RequestId Submit(GenerationRequest request) {
    const RequestId id = next_id_++;
    const auto rejection = scheduler_.Submit(id, std::move(request));
    EXPECT_FALSE(rejection.has_value()) << rejection->message;
    outcomes_[id];
    return id;
  }

  void Cancel(RequestId id) {
    scheduler_.Cancel(id);
    cancelled_.insert(id);
  }

  /// Plans the next step and has the ranks execute it. Unless it is empty, it is in flight.
  Step Launch() {
    Step step = scheduler_.PlanStep();
    ExpectWithinLimits(step);
    const auto previous = static_cast<std::int64_t>(drawn_.size());
    const StepPlan plan = DecodeStepPlan(Encode(step.plan, previous), previous);
    std::vector<std::uint64_t> logits;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      std::ranges::copy(groups_[i].Execute(plan.groups[i], drawn_), std::back_inserter(logits));
    }
    if (step.empty()) return step;
    drawn_.clear();
    for (std::size_t i = 0; i < step.uses.size(); ++i) {
      drawn_.emplace_back();
      if (step.uses[i].sample) drawn_.back() = Draw(logits.at(i), step.uses[i].row);
    }
    in_flight_.push_back({.step = step, .logits = std::move(logits), .drawn = drawn_});
    return step;
  }

  /// Gives the scheduler the results of the first step in flight.
  void Complete() {
    const Launched launched = std::move(in_flight_.front());
    in_flight_.pop_front();
    std::vector<LogitResult> results;
    for (std::size_t i = 0; i < launched.step.uses.size(); ++i) {
      const LogitUse& use = launched.step.uses[i];
      LogitResult result;
      if (use.sample) {
        result.token = Draw(launched.logits[i], use.row);
        EXPECT_EQ(result.token, launched.drawn[i]) << "its views changed in flight";
        result.logprob = LogProbOf(launched.logits[i], result.token);
      }
      if (use.target.has_value()) {
        result.target_logprob = LogProbOf(launched.logits[i], *use.target);
      }
      results.push_back(result);
    }
    for (GenerationEvent& event : scheduler_.CompleteStep(launched.step, results)) Record(event);
  }

  std::size_t in_flight() const { return in_flight_.size(); }

  /// Runs one step; `cancel` are cancelled while the ranks are at work on it.
  Step RunStep(const std::vector<RequestId>& cancel = {}) {
    Step step = Launch();
    for (const RequestId id : cancel) Cancel(id);
    if (step.empty()) {
      EXPECT_TRUE(scheduler_.CompleteStep(step, {}).empty());
    } else {
      Complete();
    }
    return step;
  }

  /// Launches a step before the one in flight is completed, if it can be planned, and then
  /// completes that one; `cancel` are cancelled between the two.
  Step RunAhead(const std::vector<RequestId>& cancel = {}) {
    const std::size_t before = in_flight();
    Step step = Launch();
    for (const RequestId id : cancel) Cancel(id);
    if (before > 0) Complete();
    return step;
  }

  /// Runs until nothing is left to do; the number of steps.
  int Drain(int max_steps) {
    int steps = 0;
    while (!scheduler_.idle() && steps < max_steps) {
      EXPECT_FALSE(RunStep().empty());
      ++steps;
    }
    EXPECT_TRUE(scheduler_.idle()) << "still busy after " << steps << " steps";
    ExpectAllPagesFree();
    return steps;
  }

  /// The same, looking ahead.
  int DrainAhead(int max_steps) {
    int steps = 0;
    while ((!scheduler_.idle() || in_flight() > 0) && steps < max_steps) {
      const std::size_t before = in_flight();
      const bool launched = !RunAhead().empty();
      EXPECT_TRUE(launched || before > 0);
      if (launched) ++steps;
    }
    EXPECT_TRUE(scheduler_.idle()) << "still busy after " << steps << " steps";
    ExpectAllPagesFree();
    return steps;
  }

  void ExpectAllPagesFree() {
    for (int i = 0; i < limits_.data_groups; ++i) {
      EXPECT_EQ(scheduler_.free_pages(i), limits_.pages_per_group) << "group " << i;
    }
  }

 private:
  struct Launched {
    Step step;
    std::vector<std::uint64_t> logits;          // of each use
    std::vector<std::optional<TokenId>> drawn;  // of each use that draws
  };

  void ExpectWithinLimits(const Step& step) {
    ASSERT_EQ(step.plan.groups.size(), groups_.size());
    std::size_t logit_rows = 0;
    for (const GroupStep& group : step.plan.groups) {
      logit_rows += group.logit_rows.size();
      EXPECT_LE(group.num_tokens(), limits_.max_tokens_per_step);
      std::map<std::int32_t, std::int64_t> rows;
      for (const std::int32_t sequence : group.sequences) ++rows[sequence];
      EXPECT_LE(static_cast<std::int64_t>(rows.size()), limits_.max_running);
      for (const auto& [sequence, count] : rows) EXPECT_LE(count, limits_.prefill_chunk);
      // Every sequence of the table is in the step, and no page is out of the pool.
      EXPECT_EQ(rows.size() * static_cast<std::size_t>(group.max_pages), group.page_table.size());
      for (const std::int32_t page : group.page_table) EXPECT_LT(page, limits_.pages_per_group);
    }
    ASSERT_EQ(step.uses.size(), logit_rows);
  }

  void Record(GenerationEvent& event) {
    EXPECT_FALSE(cancelled_.contains(event.id)) << "an event after the cancellation";
    Outcome& outcome = outcomes_.at(event.id);
    EXPECT_FALSE(outcome.finish.has_value()) << "an event after the last";
    if (!event.prompt_logprobs.empty()) {
      EXPECT_TRUE(outcome.tokens.empty()) << "scores after the first token";
      EXPECT_TRUE(outcome.prompt_logprobs.empty()) << "scores twice";
      outcome.prompt_logprobs = std::move(event.prompt_logprobs);
    }
    if (event.token.has_value()) {
      outcome.tokens.push_back(*event.token);
      outcome.logprobs.push_back(event.logprob);
    }
    outcome.finish = event.finish;
  }

  SchedulerLimits limits_;
  Scheduler scheduler_;
  std::vector<FakeGroup> groups_;
  std::vector<std::optional<TokenId>> drawn_;  // by the step launched last
  std::deque<Launched> in_flight_;
  std::map<RequestId, Outcome> outcomes_;
  std::set<RequestId> cancelled_;
  RequestId next_id_ = 100;
};

SchedulerLimits Roomy() {
  return {.data_groups = 1,
          .pages_per_group = 100,
          .max_tokens_per_step = 64,
          .prefill_chunk = 64,
          .max_running = 8,
          .max_waiting = 100,
          .request = {.vocabulary = kVocabulary, .context = 1000}};
}

/// Prompts with different salts differ.
GenerationRequest Generate(std::int64_t prompt_size, std::int64_t max_tokens, int salt = 0) {
  GenerationRequest request;
  for (std::int64_t i = 0; i < prompt_size; ++i) {
    request.prompt.push_back(static_cast<TokenId>((7 * i + salt) % kVocabulary));
  }
  request.max_tokens = max_tokens;
  request.sampling.seed = static_cast<std::uint64_t>(salt);
  return request;
}

/// The rows of each request in a step of one group, in the order of the step.
std::vector<int> RowsPerSequence(const Step& step, std::size_t group = 0) {
  std::vector<int> rows;
  for (const std::int32_t sequence : step.plan.groups[group].sequences) {
    if (static_cast<std::size_t>(sequence) == rows.size()) rows.push_back(0);
    ++rows.at(static_cast<std::size_t>(sequence));
  }
  return rows;
}

// If this fails, an idle server broadcasts empty steps, or never goes idle.
TEST(SchedulerTest, NothingToDoIsAnEmptyStep) {
  Server server(Roomy());
  EXPECT_TRUE(server.scheduler().idle());
  const Step step = server.RunStep();
  EXPECT_TRUE(step.empty());
  EXPECT_EQ(step.plan.groups.size(), 1u);
}

// If this fails, the simplest chat gives wrong tokens.
TEST(SchedulerTest, OneRequestGivesTheModelsTokens) {
  Server server(Roomy());
  const GenerationRequest request = Generate(40, 50);
  const RequestId id = server.Submit(request);
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  EXPECT_EQ(server.Drain(1000), 50);
  EXPECT_EQ(server.outcomes().at(id), Expected(request));
}

// If this fails, one long prompt stops every stream for the time it takes to read it.
TEST(SchedulerTest, DecodesGoOnWhileAPromptIsReadInChunks) {
  SchedulerLimits limits = Roomy();
  limits.max_tokens_per_step = 6;
  limits.prefill_chunk = 4;
  Server server(limits);
  server.Submit(Generate(2, 20));
  server.RunStep();
  server.Submit(Generate(10, 5, 1));
  server.Submit(Generate(3, 5, 2));
  EXPECT_EQ(RowsPerSequence(server.RunStep()), (std::vector{1, 4, 1}));
  EXPECT_EQ(RowsPerSequence(server.RunStep()), (std::vector{1, 4, 1}));
  EXPECT_EQ(RowsPerSequence(server.RunStep()), (std::vector{1, 1, 2}));  // ends of both prompts
  EXPECT_EQ(RowsPerSequence(server.RunStep()), (std::vector{1, 1, 1}));
  server.Drain(100);
}

// If this fails, steps grow beyond the activations that were allocated at start-up.
TEST(SchedulerTest, OneRowPerStepStillServesAll) {
  SchedulerLimits limits = Roomy();
  limits.max_tokens_per_step = 1;
  Server server(limits);
  std::map<RequestId, GenerationRequest> requests;
  for (int i = 0; i < 3; ++i) {
    const GenerationRequest request = Generate(3 + i, 4, i);
    requests[server.Submit(request)] = request;
  }
  server.Drain(200);
  for (const auto& [id, request] : requests) {
    EXPECT_EQ(server.outcomes().at(id), Expected(request));
  }
}

// If this fails, late requests overtake early ones, or more run than buffers exist for.
TEST(SchedulerTest, StartsInOrderOfArrivalUpToMaxRunning) {
  SchedulerLimits limits = Roomy();
  limits.max_running = 2;
  Server server(limits);
  const RequestId first = server.Submit(Generate(3, 2));
  const RequestId second = server.Submit(Generate(3, 4, 1));
  const RequestId third = server.Submit(Generate(3, 1, 2));
  Step step = server.RunStep();
  ASSERT_EQ(step.uses.size(), 2u);
  EXPECT_EQ(step.uses[0].request, first);
  EXPECT_EQ(step.uses[1].request, second);
  EXPECT_EQ(server.scheduler().num_running(), 2);
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  server.RunStep();  // ends the first
  step = server.RunStep();
  ASSERT_EQ(step.uses.size(), 2u);
  EXPECT_EQ(step.uses[1].request, third);
  server.Drain(10);
}

// If this fails, running out of KV memory kills a stream, repeats tokens on it, or lets old
// requests suffer for new ones.
TEST(SchedulerTest, PreemptsTheYoungestWhichResumesWithoutRepeating) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 4;
  Server server(limits);
  const GenerationRequest old_request = Generate(30, 40);       // grows to 3 pages
  const GenerationRequest young_request = Generate(10, 54, 1);  // grows to 2
  const RequestId old_id = server.Submit(old_request);
  const RequestId young_id = server.Submit(young_request);
  while (server.scheduler().preemptions() == 0) {
    ASSERT_FALSE(server.scheduler().idle());
    server.RunStep();
  }
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  const std::size_t before = server.outcomes().at(young_id).tokens.size();
  EXPECT_GT(before, 30u);
  EXPECT_LT(before, 54u);

  const RequestId newcomer = server.Submit(Generate(2, 1, 2));
  while (!server.outcomes().at(old_id).finish.has_value()) server.RunStep();
  EXPECT_EQ(server.outcomes().at(young_id).tokens.size(), before);
  EXPECT_FALSE(server.outcomes().at(newcomer).finish.has_value());  // did not overtake

  const Step resumed = server.RunStep();
  ASSERT_FALSE(resumed.uses.empty());
  EXPECT_EQ(resumed.uses[0].request, young_id);
  EXPECT_EQ(resumed.uses[0].row.position, 10 + before);
  EXPECT_EQ(RowsPerSequence(resumed)[0], static_cast<int>(10 + before));  // prompt and output
  server.Drain(100);
  EXPECT_EQ(server.outcomes().at(old_id), Expected(old_request));
  EXPECT_EQ(server.outcomes().at(young_id), Expected(young_request));
  EXPECT_EQ(server.scheduler().preemptions(), 1);
}

// If this fails, a request is started only to be thrown out by the next page that an older one
// fills, again and again.
TEST(SchedulerTest, AdmissionLeavesRoomToGrow) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 3;
  Server server(limits);
  server.Submit(Generate(30, 40));
  const RequestId second = server.Submit(Generate(10, 30, 1));  // 1 page now, 2 in the end
  server.RunStep();
  EXPECT_EQ(server.scheduler().num_running(), 1);
  server.Drain(100);
  EXPECT_TRUE(server.outcomes().at(second).finish.has_value());
  EXPECT_EQ(server.scheduler().preemptions(), 0);
}

// If this fails, room is kept free for requests that cannot use it, and the server runs half empty.
TEST(SchedulerTest, NoRoomIsKeptForWhatCannotGrow) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 2;
  Server server(limits);
  server.Submit(Generate(20, 12));
  server.Submit(Generate(20, 12, 1));
  server.RunStep();
  EXPECT_EQ(server.scheduler().num_running(), 2);
  server.Drain(100);
}

// If this fails, a large request waits for ever behind a stream of small ones.
TEST(SchedulerTest, SmallRequestsDoNotOvertakeALargeOne) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 4;
  Server server(limits);
  server.Submit(Generate(5, 5));
  const GenerationRequest large = Generate(100, 28, 1);
  const RequestId large_id = server.Submit(large);
  int steps = 0;
  while (!server.outcomes().at(large_id).finish.has_value()) {
    ASSERT_LT(++steps, 60);
    if (server.scheduler().num_waiting() < 20) server.Submit(Generate(5, 5, steps));
    server.RunStep();
  }
  EXPECT_EQ(server.outcomes().at(large_id), Expected(large));
}

// If this fails, a request that can never run blocks the queue for ever, or one that just fits is
// turned away.
TEST(SchedulerTest, TakesWhatFitsAloneAndRefusesOneTokenMore) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 2;
  Server server(limits);
  const GenerationRequest fits = Generate(34, 30);
  const RequestId id = server.Submit(fits);
  server.Drain(100);
  EXPECT_EQ(server.outcomes().at(id), Expected(fits));

  auto rejection = server.scheduler().Submit(1, Generate(34, 31));
  ASSERT_TRUE(rejection.has_value());
  EXPECT_EQ(rejection->reason, Rejection::Reason::kTooLarge);
  EXPECT_EQ(rejection->field, "max_tokens");
  for (const std::string number : {"34", "31", "64"}) {
    EXPECT_NE(rejection->message.find(number), std::string::npos) << rejection->message;
  }
  rejection = server.scheduler().Submit(1, Generate(65, 1));
  ASSERT_TRUE(rejection.has_value());
  EXPECT_EQ(rejection->field, "prompt");
  rejection = server.scheduler().Submit(1, Generate(900, 101));
  ASSERT_TRUE(rejection.has_value());
  EXPECT_NE(rejection->message.find("1000"), std::string::npos) << rejection->message;
  EXPECT_TRUE(server.scheduler().idle());
}

// If this fails, an overload fills the leader's memory, or a front end cannot tell it from an
// invalid request.
TEST(SchedulerTest, RefusesWhenTheQueueIsFull) {
  SchedulerLimits limits = Roomy();
  limits.max_waiting = 2;
  Server server(limits);
  server.Submit(Generate(3, 3));
  server.Submit(Generate(3, 3));
  const auto rejection = server.scheduler().Submit(1, Generate(3, 3));
  ASSERT_TRUE(rejection.has_value());
  EXPECT_EQ(rejection->reason, Rejection::Reason::kQueueFull);
  EXPECT_EQ(server.scheduler().num_waiting(), 2);
  server.RunStep();
  server.Submit(Generate(3, 3));
  server.Drain(100);
}

// If this fails, answers run on after the end token, or the client is told the wrong reason.
TEST(SchedulerTest, EndsAtAStopTokenOrTheLength) {
  const Outcome unstopped = Expected(Generate(5, 8));
  for (std::size_t last = 0; last < 8; ++last) {
    const TokenId stop = unstopped.tokens[last];
    if (std::ranges::find(unstopped.tokens, stop) - unstopped.tokens.begin() <
        static_cast<std::ptrdiff_t>(last)) {
      continue;  // it came earlier already
    }
    Server server(Roomy());
    GenerationRequest request = Generate(5, 8);
    request.stop_ids = {stop};
    const RequestId id = server.Submit(request);
    server.Drain(100);
    const Outcome& outcome = server.outcomes().at(id);
    EXPECT_EQ(outcome.tokens.size(), last + 1);
    EXPECT_EQ(outcome.tokens.back(), stop);          // it is delivered
    EXPECT_EQ(outcome.finish, FinishReason::kStop);  // also when it is the eighth
  }
  EXPECT_EQ(unstopped.finish, FinishReason::kLength);
}

// If this fails, evaluations (perplexity, multiple choice) score the wrong tokens.
TEST(SchedulerTest, ScoresEveryPromptTokenButTheFirst) {
  for (const std::int64_t chunk : {1, 3, 64}) {
    SchedulerLimits limits = Roomy();
    limits.prefill_chunk = chunk;
    Server server(limits);
    GenerationRequest scored = Generate(9, 3);
    scored.prompt_logprobs = true;
    GenerationRequest only_scored = Generate(11, 0, 1);
    only_scored.prompt_logprobs = true;
    const RequestId scored_id = server.Submit(scored);
    const RequestId only_scored_id = server.Submit(only_scored);
    server.Drain(100);
    EXPECT_EQ(server.outcomes().at(scored_id).prompt_logprobs.size(), 8u);
    EXPECT_EQ(server.outcomes().at(scored_id), Expected(scored));
    EXPECT_EQ(server.outcomes().at(only_scored_id).prompt_logprobs.size(), 10u);
    EXPECT_EQ(server.outcomes().at(only_scored_id), Expected(only_scored));
  }
}

// If this fails, logits are computed for rows that nobody reads: each costs a pass over the output
// matrix.
TEST(SchedulerTest, AsksForNoLogitsBeyondNeed) {
  Server server(Roomy());
  server.Submit(Generate(9, 2));
  GenerationRequest only_scored = Generate(5, 0);
  only_scored.prompt_logprobs = true;
  server.Submit(only_scored);
  const Step step = server.RunStep();
  EXPECT_EQ(step.plan.groups[0].logit_rows, (std::vector<std::int32_t>{8, 9, 10, 11, 12}));
  ASSERT_EQ(step.uses.size(), 5u);
  EXPECT_TRUE(step.uses[0].sample);
  EXPECT_FALSE(step.uses[0].target.has_value());
  for (std::size_t i = 1; i < 5; ++i) {
    EXPECT_FALSE(step.uses[i].sample);
    EXPECT_EQ(step.uses[i].target, only_scored.prompt[i]);
  }
  server.Drain(10);
}

// If this fails, scoring a prompt of one token hangs: it has no logits to wait for.
TEST(SchedulerTest, ScoringAOneTokenPromptEnds) {
  Server server(Roomy());
  GenerationRequest request = Generate(1, 0);
  request.prompt_logprobs = true;
  const RequestId id = server.Submit(request);
  server.Drain(2);
  EXPECT_EQ(server.outcomes().at(id).finish, FinishReason::kLength);
  EXPECT_TRUE(server.outcomes().at(id).prompt_logprobs.empty());
}

// If this fails, a prompt preempted while it is scored comes back with scores missing or doubled.
TEST(SchedulerTest, ScoresSurvivePreemption) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 6;
  limits.prefill_chunk = 1;
  Server server(limits);
  const GenerationRequest old_request = Generate(1, 130);  // grows to 5 pages
  GenerationRequest scored = Generate(96, 5, 1);           // to 4, and is read as slowly
  scored.prompt_logprobs = true;
  const RequestId old_id = server.Submit(old_request);
  const RequestId scored_id = server.Submit(scored);
  while (server.scheduler().preemptions() == 0) {
    ASSERT_FALSE(server.scheduler().idle());
    server.RunStep();
  }
  server.Drain(1000);
  EXPECT_EQ(server.outcomes().at(old_id), Expected(old_request));
  EXPECT_EQ(server.outcomes().at(scored_id), Expected(scored));
}

// If this fails, penalties read tokens of another request or miscount, or cost time where none is
// set.
TEST(SchedulerTest, PenaltiesReadTheRequestsOwnTokens) {
  Server server(Roomy());
  GenerationRequest plain = Generate(4, 6);
  GenerationRequest repetition = Generate(4, 6, 1);
  repetition.prompt = {3, 9, 3, 1};
  repetition.sampling.repetition_penalty = 1.2f;
  GenerationRequest frequency = Generate(4, 30, 2);
  frequency.sampling.frequency_penalty = 0.5f;
  const RequestId plain_id = server.Submit(plain);
  const RequestId repetition_id = server.Submit(repetition);
  const RequestId frequency_id = server.Submit(frequency);
  const Step step = server.scheduler().PlanStep();
  ASSERT_EQ(step.uses.size(), 3u);
  EXPECT_TRUE(step.uses[0].row.seen.empty());
  const auto seen = step.uses[1].row.seen;
  EXPECT_EQ(std::vector(seen.begin(), seen.end()), (std::vector<std::int32_t>{3, 9, 1}));
  EXPECT_TRUE(step.uses[1].row.produced.empty());
  EXPECT_TRUE(step.uses[2].row.seen.empty());
  EXPECT_TRUE(step.uses[2].row.produced.empty());  // nothing was produced yet
  for (const RequestId id : {plain_id, repetition_id, frequency_id}) server.Cancel(id);
  server.scheduler().CompleteStep(step, std::vector<LogitResult>(3));

  const RequestId again = server.Submit(frequency);
  while (server.outcomes().at(again).tokens.size() < 29) server.RunStep();
  const Step last = server.scheduler().PlanStep();
  const SampleRow& row = last.uses.at(0).row;
  std::int32_t total = 0;
  for (const std::int32_t count : row.produced_counts) total += count;
  EXPECT_EQ(total, 29);
  EXPECT_EQ(row.produced.size(), row.produced_counts.size());
  EXPECT_LT(row.produced.size(), 29u);  // of so many, some came twice
}

// If this fails, a client that hangs up keeps its KV pages, or gets tokens after it left.
TEST(SchedulerTest, CancelWorksInEveryState) {
  SchedulerLimits limits = Roomy();
  limits.max_running = 1;
  Server server(limits);
  const RequestId running = server.Submit(Generate(40, 20));
  const RequestId waiting = server.Submit(Generate(40, 20, 1));
  const GenerationRequest kept = Generate(40, 20, 2);
  const RequestId kept_id = server.Submit(kept);
  server.RunStep();
  EXPECT_EQ(server.scheduler().free_pages(0), 98);
  server.Cancel(waiting);
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  server.Cancel(running);
  EXPECT_EQ(server.scheduler().free_pages(0), 100);
  server.Cancel(running);  // again
  server.scheduler().Cancel(7);
  server.Drain(100);
  EXPECT_EQ(server.outcomes().at(running).tokens.size(), 1u);
  EXPECT_TRUE(server.outcomes().at(waiting).tokens.empty());
  EXPECT_EQ(server.outcomes().at(kept_id), Expected(kept));
  server.Cancel(kept_id);  // has ended
}

// If this fails, a hang-up at the wrong moment makes the sampler read freed memory.
TEST(SchedulerTest, CancelInFlightKeepsTheStepsViews) {
  Server server(Roomy());
  GenerationRequest request = Generate(40, 20);
  request.sampling.repetition_penalty = 1.5f;
  request.sampling.presence_penalty = 0.5f;
  const RequestId id = server.Submit(request);
  for (int i = 0; i < 3; ++i) server.RunStep();
  const Step step = server.scheduler().PlanStep();
  const SampleRow& row = step.uses.at(0).row;
  const std::vector<std::int32_t> seen(row.seen.begin(), row.seen.end());
  const std::vector<std::int32_t> produced(row.produced.begin(), row.produced.end());
  server.Cancel(id);
  EXPECT_EQ(server.scheduler().free_pages(0), 100);
  EXPECT_TRUE(server.scheduler().idle());
  EXPECT_TRUE(std::ranges::equal(row.seen, seen));
  EXPECT_TRUE(std::ranges::equal(row.produced, produced));
  EXPECT_TRUE(server.scheduler().CompleteStep(step, std::vector<LogitResult>(1)).empty());
  EXPECT_TRUE(server.scheduler().PlanStep().empty());
}

// If this fails, one data group idles while another has a queue.
TEST(SchedulerTest, SpreadsRequestsOverDataGroups) {
  SchedulerLimits limits = Roomy();
  limits.data_groups = 3;
  Server server(limits);
  server.Submit(Generate(10, 20));
  server.RunStep();
  for (int i = 1; i < 6; ++i) server.Submit(Generate(10, 20, i));
  const Step step = server.RunStep();
  EXPECT_EQ(RowsPerSequence(step, 0), (std::vector{1, 10}));
  EXPECT_EQ(RowsPerSequence(step, 1), (std::vector{10, 10}));
  EXPECT_EQ(RowsPerSequence(step, 2), (std::vector{10, 10}));
  server.Drain(100);
}

// If this fails, requests are started where KV memory is short while another group has plenty.
TEST(SchedulerTest, StartsWhereMostPagesAreFree) {
  SchedulerLimits limits = Roomy();
  limits.data_groups = 2;
  limits.max_tokens_per_step = 200;
  limits.prefill_chunk = 200;
  Server server(limits);
  server.Submit(Generate(150, 20));
  for (int i = 1; i < 3; ++i) server.Submit(Generate(10, 20, i));
  const Step step = server.RunStep();
  EXPECT_EQ(RowsPerSequence(step, 0), (std::vector{150}));
  EXPECT_EQ(RowsPerSequence(step, 1), (std::vector{10, 10}));
  server.Drain(100);
}

// If this fails, one data group decodes twice the rows of another with the same memory left.
TEST(SchedulerTest, AmongEqualsStartsWhereFewestRun) {
  SchedulerLimits limits = Roomy();
  limits.data_groups = 2;
  Server server(limits);
  server.Submit(Generate(5, 5));       // wants one page of group 0
  server.Submit(Generate(20, 20, 1));  // wants two of group 1
  server.Submit(Generate(6, 5, 2));    // one of group 0: both have as many left
  server.Submit(Generate(7, 5, 3));
  const Step step = server.RunStep();
  EXPECT_EQ(RowsPerSequence(step, 0), (std::vector{5, 6}));
  EXPECT_EQ(RowsPerSequence(step, 1), (std::vector{20, 7}));
  server.Drain(100);
}

// If this fails, ranks write beyond the page table: it must hold the sequences of this step, in the
// order that the rows name them.
TEST(SchedulerTest, PageTableHoldsThisStepsSequencesOnly) {
  SchedulerLimits limits = Roomy();
  limits.max_tokens_per_step = 34;
  Server server(limits);
  server.Submit(Generate(80, 4));
  server.RunStep();
  server.Submit(Generate(3, 2, 1));
  const GroupStep group = server.RunStep().plan.groups[0];  // no row is left for the second
  EXPECT_EQ(group.max_pages, 3);
  EXPECT_EQ(group.page_table.size(), 3u);
  const GroupStep both = server.RunStep().plan.groups[0];
  EXPECT_EQ(both.page_table.size(), 6u);
  EXPECT_EQ(both.page_table[4], 0);  // the second needs one page
  EXPECT_EQ(both.page_table[5], 0);
  server.Drain(10);
}

// If this fails, the device waits for the host between steps, or the host tells it to decode the
// wrong token.
TEST(SchedulerAheadTest, DecodesTokensThatAreNotKnownYet) {
  SchedulerLimits limits = Roomy();
  limits.data_groups = 2;
  Server server(limits);
  GenerationRequest scored = Generate(6, 4, 1);
  scored.prompt_logprobs = true;
  const RequestId first = server.Submit(scored);  // group 0: five scores, then a draw
  const RequestId second = server.Submit(Generate(40, 3, 2));
  const Step prompts = server.Launch();
  ASSERT_EQ(prompts.uses.size(), 7u);

  const Step decodes = server.Launch();
  EXPECT_EQ(decodes.plan.groups[0].tokens, std::vector{PendingToken(5)});
  EXPECT_EQ(decodes.plan.groups[0].positions, std::vector{6});
  EXPECT_EQ(decodes.plan.groups[1].tokens, std::vector{PendingToken(6)});
  EXPECT_EQ(decodes.plan.groups[1].positions, std::vector{40});
  ASSERT_EQ(decodes.uses.size(), 2u);
  EXPECT_EQ(decodes.uses[0].row.position, 7u);  // of the new token: it follows the pending one
  EXPECT_EQ(decodes.uses[1].row.position, 41u);

  EXPECT_TRUE(server.outcomes().at(first).tokens.empty());
  server.Complete();
  EXPECT_EQ(server.outcomes().at(first).tokens.size(), 1u);
  EXPECT_EQ(server.RunAhead().plan.groups[1].tokens, std::vector{PendingToken(1)});
  server.DrainAhead(10);
  EXPECT_EQ(server.outcomes().at(first), Expected(scored));
  EXPECT_EQ(server.outcomes().at(second), Expected(Generate(40, 3, 2)));
}

// If this fails, each answer that ends by its length costs a row for nothing, or its place stays
// empty for a step.
TEST(SchedulerAheadTest, TheLastTokenLeavesItsPlaceAtOnce) {
  SchedulerLimits limits = Roomy();
  limits.max_running = 1;
  limits.pages_per_group = 2;
  Server server(limits);
  const RequestId first = server.Submit(Generate(40, 2));
  const RequestId second = server.Submit(Generate(41, 1, 1));
  server.Launch();
  EXPECT_EQ(server.RunAhead().uses.at(0).request, first);  // its last
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  const Step next = server.Launch();
  ASSERT_EQ(next.uses.size(), 1u);
  EXPECT_EQ(next.uses[0].request, second);
  EXPECT_EQ(server.scheduler().num_running(), 2);  // the first until its token is known
  EXPECT_FALSE(server.outcomes().at(first).finish.has_value());
  server.Complete();
  EXPECT_EQ(server.outcomes().at(first), Expected(Generate(40, 2)));

  EXPECT_TRUE(server.Launch().empty());  // all may end, but have not
  EXPECT_EQ(server.in_flight(), 1u);
  EXPECT_FALSE(server.scheduler().idle());
  server.Complete();
  EXPECT_TRUE(server.scheduler().idle());
  EXPECT_EQ(server.outcomes().at(second), Expected(Generate(41, 1, 1)));
  server.ExpectAllPagesFree();
}

// If this fails, answers run on after the end token, or what was computed beyond it is delivered.
TEST(SchedulerAheadTest, WhatFollowsAStopTokenIsSkipped) {
  GenerationRequest request = Generate(5, 8);
  request.stop_ids = {Expected(request).tokens[2]};
  const Outcome expected = Expected(request);
  ASSERT_LE(expected.tokens.size(), 3u);
  Server server(Roomy());
  const RequestId id = server.Submit(request);
  const int steps = server.DrainAhead(100);
  EXPECT_EQ(static_cast<std::size_t>(steps), expected.tokens.size() + 1);
  EXPECT_EQ(server.outcomes().at(id), expected);
}

// If this fails, penalties miss the token drawn last. Where none is drawn, they hold up nobody.
TEST(SchedulerAheadTest, PenaltiesWaitForTheTokenBeforeTheirs) {
  SchedulerLimits limits = Roomy();
  limits.prefill_chunk = 4;
  for (int which = 0; which < 3; ++which) {
    Server server(limits);
    GenerationRequest penalised = Generate(8, 3, 1);
    if (which == 0) penalised.sampling.repetition_penalty = 1.5f;
    if (which == 1) penalised.sampling.presence_penalty = 0.5f;
    if (which == 2) penalised.sampling.frequency_penalty = 0.5f;
    const RequestId plain_id = server.Submit(Generate(2, 9));
    const RequestId penalised_id = server.Submit(penalised);
    server.Launch();
    EXPECT_EQ(server.RunAhead().uses.size(), 2u);  // ahead of its first draw, which this one is
    EXPECT_TRUE(server.RunAhead().empty());
    EXPECT_EQ(server.in_flight(), 0u);
    EXPECT_EQ(server.RunAhead().uses.size(), 2u);
    EXPECT_TRUE(server.RunAhead().empty());
    EXPECT_EQ(server.RunAhead().uses.size(), 2u);  // its last draw, after which nothing is drawn
    EXPECT_EQ(server.RunAhead().uses.size(), 1u);
    server.DrainAhead(100);
    EXPECT_EQ(server.outcomes().at(plain_id), Expected(Generate(2, 9)));
    EXPECT_EQ(server.outcomes().at(penalised_id), Expected(penalised));
  }
}

// If this fails, a score is reported before it is computed, or asked for twice.
TEST(SchedulerAheadTest, ScoringEndsWithItsLastRow) {
  for (const std::int64_t chunk : {1, 4, 64}) {
    SchedulerLimits limits = Roomy();
    limits.prefill_chunk = chunk;
    Server server(limits);
    GenerationRequest request = Generate(8, 0);
    request.prompt_logprobs = true;
    const RequestId id = server.Submit(request);
    EXPECT_EQ(server.DrainAhead(100), (8 + chunk - 1) / chunk);
    EXPECT_EQ(server.outcomes().at(id), Expected(request));
  }
}

// If this fails, a request that loses its pages while it draws loses the token, too, or gives it
// twice.
TEST(SchedulerAheadTest, PreemptionKeepsTheTokenUnderWay) {
  SchedulerLimits limits = Roomy();
  limits.pages_per_group = 4;
  Server server(limits);
  const GenerationRequest old_request = Generate(30, 40);
  const GenerationRequest young_request = Generate(10, 54, 1);
  const RequestId old_id = server.Submit(old_request);
  const RequestId young_id = server.Submit(young_request);
  std::size_t before = 0;
  while (server.scheduler().preemptions() == 0) {
    ASSERT_FALSE(server.scheduler().idle());
    before = server.outcomes().at(young_id).tokens.size();
    server.RunAhead();
  }
  EXPECT_EQ(server.scheduler().num_waiting(), 1);
  EXPECT_EQ(server.outcomes().at(young_id).tokens.size(), before + 1);
  server.DrainAhead(200);
  EXPECT_EQ(server.outcomes().at(old_id), Expected(old_request));
  EXPECT_EQ(server.outcomes().at(young_id), Expected(young_request));
}

// If this fails, a preempted request that another group takes at once has a hole where the token
// under way belongs.
TEST(SchedulerAheadTest, AnotherGroupGoesOnWithTheTokenUnderWay) {
  SchedulerLimits limits = Roomy();
  limits.data_groups = 2;
  limits.pages_per_group = 4;
  Server server(limits);
  const RequestId old_id = server.Submit(Generate(30, 60));       // group 0, grows to 3 pages
  const RequestId other_id = server.Submit(Generate(60, 20, 1));  // group 1, until it has ended
  const RequestId young_id = server.Submit(Generate(10, 54, 2));  // group 0, grows to 2 pages
  Step step;
  while (server.scheduler().preemptions() == 0) {
    ASSERT_FALSE(server.scheduler().idle());
    step = server.RunAhead();
  }
  const std::vector<TokenId>& tokens = step.plan.groups[1].tokens;
  ASSERT_GT(tokens.size(), 40u);  // prompt and output
  EXPECT_TRUE(IsPending(tokens.back()));
  EXPECT_EQ(step.uses.back().request, young_id);
  EXPECT_EQ(step.uses.back().row.position, tokens.size());
  server.DrainAhead(100);
  EXPECT_EQ(server.outcomes().at(old_id), Expected(Generate(30, 60)));
  EXPECT_EQ(server.outcomes().at(other_id), Expected(Generate(60, 20, 1)));
  EXPECT_EQ(server.outcomes().at(young_id), Expected(Generate(10, 54, 2)));
}

// If this fails, a hang-up between two steps makes the sampler read freed memory, or the other
// requests take each other's tokens.
TEST(SchedulerAheadTest, CancelWithTwoStepsInFlight) {
  Server server(Roomy());
  GenerationRequest penalised = Generate(65, 20, 1);  // a chunk alone, then a row that draws
  penalised.sampling.repetition_penalty = 1.5f;
  const RequestId cancelled = server.Submit(Generate(10, 20));
  const RequestId kept = server.Submit(Generate(11, 20, 2));
  server.Launch();
  const RequestId late = server.Submit(penalised);
  server.Launch();
  server.Complete();
  const Step step = server.Launch();
  ASSERT_EQ(server.in_flight(), 2u);
  ASSERT_EQ(step.uses.size(), 3u);
  EXPECT_FALSE(step.uses[2].row.seen.empty());
  server.Cancel(cancelled);
  server.Cancel(late);
  EXPECT_EQ(server.scheduler().free_pages(0), 99);
  server.Complete();
  server.Complete();  // draws once more through the views of the step's rows
  EXPECT_EQ(server.outcomes().at(cancelled).tokens.size(), 1u);
  EXPECT_TRUE(server.outcomes().at(late).tokens.empty());
  server.DrainAhead(100);
  EXPECT_EQ(server.outcomes().at(kept), Expected(Generate(11, 20, 2)));
}

// If this fails, a step decodes tokens that the step before the last draws, or a step's results go
// to another.
TEST(SchedulerDeathTest, TwoStepsInFlightCompletedInOrder) {
  Server server(Roomy());
  server.Submit(Generate(3, 5));
  const Step step = server.scheduler().PlanStep();
  EXPECT_DEATH(server.scheduler().CompleteStep(step, {}), "results.size");
  const Step next = server.scheduler().PlanStep();
  EXPECT_DEATH(server.scheduler().PlanStep(), "kMaxStepsInFlight");
  const std::vector<LogitResult> results(1);
  EXPECT_DEATH(server.scheduler().CompleteStep(next, results), "number");
  server.scheduler().CompleteStep(step, results);
  EXPECT_DEATH(server.scheduler().CompleteStep(step, results), "number");
}

// If this fails, two clients with one id get each other's tokens.
TEST(SchedulerDeathTest, AnIdIsOneRequest) {
  Server server(Roomy());
  const RequestId id = server.Submit(Generate(3, 3));
  EXPECT_DEATH(server.scheduler().Submit(id, Generate(3, 3)), "contains");
}

struct Traffic {
  SchedulerLimits limits;
  unsigned seed = 0;
  int requests = 0;
  bool ahead = false;
  bool penalties = true;
};

GenerationRequest RandomRequest(std::mt19937& random, std::int64_t context) {
  const auto up_to = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n + 1));
  };
  const bool long_prompt = random() % 4 == 0;
  const std::int64_t prompt_size = 1 + up_to(long_prompt ? context - 1 : 30);
  GenerationRequest request = Generate(prompt_size, std::min(1 + up_to(180), context - prompt_size),
                                       static_cast<int>(random() % 1000));
  request.prompt_logprobs = random() % 4 == 0;
  if (random() % 16 == 0) request.max_tokens = 0;
  if (request.max_tokens == 0) request.prompt_logprobs = true;
  if (random() % 4 == 0) request.stop_ids = {static_cast<TokenId>(random() % kVocabulary)};
  if (random() % 4 == 0) request.sampling.repetition_penalty = 1.5f;
  if (random() % 4 == 0) request.sampling.presence_penalty = 0.5f;
  return request;
}

struct Replay {
  std::vector<std::vector<std::byte>> plans;
  std::map<RequestId, Outcome> outcomes;  // of those not cancelled
  std::int64_t preemptions = 0;
  std::int64_t pending = 0;  // tokens decoded before they were known
};

/// Sends random traffic, some of it cancelled, and holds every outcome against Expected.
Replay RunTraffic(const Traffic& traffic) {
  Replay replay;
  std::mt19937 random(traffic.seed);
  std::mt19937 random_requests(traffic.seed + 1000);  // the same ones, however they are scheduled
  Server server(traffic.limits);
  std::map<RequestId, GenerationRequest> requests;
  std::set<RequestId> cancelled;
  std::int64_t work = 0;  // rows, were nothing ever computed twice
  std::int64_t steps = 0;
  while (static_cast<int>(requests.size()) < traffic.requests || !server.scheduler().idle() ||
         server.in_flight() > 0) {
    while (static_cast<int>(requests.size()) < traffic.requests &&
           server.scheduler().num_waiting() < 4 && random() % 3 == 0) {
      GenerationRequest request = RandomRequest(random_requests, traffic.limits.request.context);
      if (!traffic.penalties) {
        request.sampling.repetition_penalty = 1.0f;
        request.sampling.presence_penalty = 0.0f;
      }
      requests[server.Submit(request)] = request;
      work += static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
    }
    std::vector<RequestId> in_flight;  // cancelled between plan and results
    if (random() % 40 == 0 && !requests.empty()) {
      const auto victim = std::next(
          requests.begin(),
          static_cast<std::ptrdiff_t>(requests.size() - 1 -
                                      random() % std::min<std::size_t>(requests.size(), 12)));
      if (!server.outcomes().at(victim->first).finish.has_value()) {
        cancelled.insert(victim->first);
        if (random() % 2 == 0) {
          server.Cancel(victim->first);
        } else {
          in_flight.push_back(victim->first);
        }
      }
    }
    const std::size_t unfinished = server.in_flight();
    const Step step = traffic.ahead ? server.RunAhead(in_flight) : server.RunStep(in_flight);
    EXPECT_TRUE(!step.empty() || unfinished > 0 || server.scheduler().idle());
    replay.plans.push_back(Encode(step.plan, std::numeric_limits<std::int32_t>::max()));
    for (const GroupStep& group : step.plan.groups) {
      replay.pending += std::ranges::count_if(group.tokens, IsPending);
    }
    ++steps;
    if (steps > 3 * work + 1000 || testing::Test::HasFailure()) {
      ADD_FAILURE() << "stopped at step " << steps << " with " << server.scheduler().num_waiting()
                    << " waiting";
      return replay;
    }
  }
  server.ExpectAllPagesFree();
  for (const auto& [id, request] : requests) {
    const Outcome expected = Expected(request);
    const Outcome& outcome = server.outcomes().at(id);
    if (!cancelled.contains(id)) {
      EXPECT_EQ(outcome, expected) << "request " << id;
      replay.outcomes[id] = outcome;
      continue;
    }
    // It was told a part of the truth.
    EXPECT_LE(outcome.tokens.size(), expected.tokens.size());
    EXPECT_TRUE(std::equal(outcome.tokens.begin(), outcome.tokens.end(), expected.tokens.begin()));
  }
  replay.preemptions = server.scheduler().preemptions();
  return replay;
}

class SchedulerTrafficTest : public testing::TestWithParam<std::tuple<int, std::int64_t>> {
 protected:
  static Traffic TrafficOf(unsigned seed) {
    const auto [data_groups, chunk] = GetParam();
    return {.limits = {.data_groups = data_groups,
                       .pages_per_group = 6 + 2 * static_cast<std::int64_t>(seed),
                       .max_tokens_per_step = chunk + 3 * seed,
                       .prefill_chunk = chunk,
                       .max_running = 9,
                       .max_waiting = 6,
                       .request = {.vocabulary = kVocabulary, .context = 220}},
            .seed = seed,
            .requests = 120};
  }
};

// If this fails, a client's tokens depend on who else is being served: pages are mixed up, a
// resumed request repeats or skips, or someone waits for ever.
TEST_P(SchedulerTrafficTest, EveryRequestGetsItsOwnTokens) {
  std::int64_t preemptions = 0;
  std::size_t steps = 0;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    const Replay replay = RunTraffic(TrafficOf(seed));
    preemptions += replay.preemptions;
    steps += replay.plans.size();
    if (HasFailure()) return;
  }
  EXPECT_GT(preemptions, 30);
  RecordProperty("steps", static_cast<int>(steps));
  RecordProperty("preemptions", static_cast<int>(preemptions));
}

// If this fails, tokens depend on whether the host hides behind the device: a step reads a page
// that a request in flight has given up, or a token that another request drew.
TEST_P(SchedulerTrafficTest, LookingAheadGivesTheSameTokens) {
  std::int64_t preemptions = 0;
  std::int64_t pending = 0;
  std::size_t steps = 0;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    Traffic traffic = TrafficOf(seed);
    traffic.requests = 80;
    traffic.penalties = seed == 3;  // with them, little is planned ahead
    const Replay in_turn = RunTraffic(traffic);
    traffic.ahead = true;
    const Replay ahead = RunTraffic(traffic);
    if (HasFailure()) return;
    EXPECT_EQ(in_turn.pending, 0);
    std::size_t compared = 0;
    for (const auto& [id, outcome] : ahead.outcomes) {
      const auto other = in_turn.outcomes.find(id);
      if (other == in_turn.outcomes.end()) continue;  // cancelled there
      EXPECT_EQ(outcome, other->second) << "request " << id;
      ++compared;
    }
    EXPECT_GT(compared, 15u);
    preemptions += ahead.preemptions;
    pending += ahead.pending;
    steps += ahead.plans.size();
  }
  EXPECT_GT(preemptions, 10);
  EXPECT_GT(pending, 5000);
  RecordProperty("steps", static_cast<int>(steps));
  RecordProperty("preemptions", static_cast<int>(preemptions));
  RecordProperty("pending", static_cast<int>(pending));
}

INSTANTIATE_TEST_SUITE_P(GroupsAndChunks, SchedulerTrafficTest,
                         testing::Combine(testing::Values(1, 2, 3), testing::Values(1, 3, 8, 64)),
                         [](const auto& info) {
                           return "Groups" + std::to_string(std::get<0>(info.param)) + "Chunk" +
                                  std::to_string(std::get<1>(info.param));
                         });

// If this fails, a fault seen in production cannot be replayed from its log of requests.
TEST(SchedulerTest, TheSameTrafficGivesTheSamePlans) {
  const Traffic traffic{.limits = {.data_groups = 2,
                                   .pages_per_group = 8,
                                   .max_tokens_per_step = 12,
                                   .prefill_chunk = 8,
                                   .max_running = 5,
                                   .max_waiting = 6,
                                   .request = {.vocabulary = kVocabulary, .context = 220}},
                        .seed = 9,
                        .requests = 60};
  EXPECT_EQ(RunTraffic(traffic).plans, RunTraffic(traffic).plans);
}

}  // namespace
}  // namespace jubal

#ifndef JUBAL_TESTS_RPC_COORDINATOR_FIXTURE_H_
#define JUBAL_TESTS_RPC_COORDINATOR_FIXTURE_H_

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rpc/coordinator.h"
#include "rpc/rank_link.h"
#include "rpc/socket.h"
#include "tests/runtime/tokenizer/tiny_model.h"

namespace jubal {

/// A tokenizer of one piece per lower-case letter, ids kFirstLetter on, then bytes and the space.
inline constexpr TokenId kFirstLetter = 3;
inline constexpr std::int64_t kVocabulary = 512;
inline constexpr std::int64_t kContext = 1 << 20;

inline TinyModel LetterModel() {
  TinyModel model;
  for (char letter = 'a'; letter <= 'z'; ++letter) model.Add(std::string(1, letter));
  model.AddBytes().Add("\u2581");  // how pieces write a space
  return model;
}

/// A file that the test may leave behind for the next run to replace.
inline std::string TestPath(const std::string& name) {
  return (std::filesystem::path(testing::TempDir()) / (name + "." + std::to_string(getpid())))
      .string();
}

/// The token that the toy engine draws: a function of nothing but what is named here.
inline TokenId ToyToken(std::uint64_t seed, std::int64_t index) {
  std::uint64_t hash = seed * 0xd1342543de82ef95 + static_cast<std::uint64_t>(index) + 1;
  hash *= 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  return kFirstLetter + static_cast<TokenId>((hash >> 33) % 26);
}

inline float ToyLogprob(TokenId token, std::int64_t index) {
  return -static_cast<float>(token) / 7.0f - static_cast<float>(index) / 1024.0f;
}

/// The text of the toy's first tokens.
inline std::string ToyText(std::uint64_t seed, std::int64_t tokens) {
  std::string text;
  for (std::int64_t i = 0; i < tokens; ++i) {
    text += static_cast<char>('a' + ToyToken(seed, i) - kFirstLetter);
  }
  return text;
}

/// One rank of a job that computes nothing. The leader answers each request with toy tokens, one
/// per step for all, `step` apart.
class FakeRank {
 public:
  FakeRank(const RankLinkOptions& options, std::chrono::microseconds step)
      : step_(step),
        leader_(options.rank == 0),
        link_(std::make_unique<RankLink>(
            options, RankLinkCallbacks{.on_submit =
                                           [this](RequestId id, GenerationRequest request) {
                                             const std::lock_guard lock(mutex_);
                                             if (queue_full_) {
                                               link_->SendRejected(
                                                   id, {Rejection::Reason::kQueueFull, "",
                                                        "The queue is full."});
                                               return;
                                             }
                                             last_request_ = request;
                                             running_.emplace(id, Running{std::move(request), 0});
                                             changed_.notify_all();
                                           },
                                       .on_cancel =
                                           [this](RequestId id) {
                                             const std::lock_guard lock(mutex_);
                                             running_.erase(id);
                                             ++cancels_;
                                             changed_.notify_all();
                                           },
                                       .on_stop =
                                           [this] {
                                             const std::lock_guard lock(mutex_);
                                             stop_ = true;
                                             changed_.notify_all();
                                           },
                                       .on_lost =
                                           [this](const std::string& reason) {
                                             const std::lock_guard lock(mutex_);
                                             lost_ = reason;
                                             changed_.notify_all();
                                           }})) {
    if (!leader_) return;
    link_->SendReady({.model = "toy",
                      .family = "toy-moe",
                      .limits = {.vocabulary = kVocabulary, .context = kContext},
                      .eos_ids = {2},
                      .weight_bytes = 12345,
                      .plan = "one rank does nothing"});
    engine_ = std::thread([this] { Run(); });
  }

  ~FakeRank() { Die(); }

  /// As if the process ended.
  void Die() {
    {
      const std::lock_guard lock(mutex_);
      dying_ = true;
      changed_.notify_all();
    }
    if (engine_.joinable()) engine_.join();
    link_.reset();
  }

  /// Waits, up to 5 s, until what the engine was told makes `reached` true.
  template <class Condition>
  bool WaitFor(Condition reached) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(5), reached);
  }

  bool WaitForCancels(int count) {
    return WaitFor([&] { return cancels_ >= count; });
  }

  bool WaitForRunning(std::size_t count) {
    return WaitFor([&] { return running_.size() == count; });
  }

  std::string WaitForLoss() {
    WaitFor([&] { return lost_.has_value(); });
    const std::lock_guard lock(mutex_);
    return lost_.value_or("(not lost)");
  }

  bool lost() {
    const std::lock_guard lock(mutex_);
    return lost_.has_value();
  }

  /// The engine ended by itself: it was told to stop, and all requests are done.
  bool WaitForEnd() {
    return WaitFor([&] { return ended_; });
  }

  void set_queue_full(bool full) {
    const std::lock_guard lock(mutex_);
    queue_full_ = full;
  }

  GenerationRequest last_request() {
    const std::lock_guard lock(mutex_);
    return last_request_;
  }

  RankLink& link() { return *link_; }

 private:
  struct Running {
    GenerationRequest request;
    std::int64_t produced = 0;
  };

  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return dying_ || stop_ || !running_.empty(); });
      if (dying_) return;
      if (running_.empty()) {
        ended_ = true;
        changed_.notify_all();
        return;
      }
      std::vector<GenerationEvent> events;
      for (auto entry = running_.begin(); entry != running_.end();) {
        auto& [id, running] = *entry;
        const TokenId token = ToyToken(running.request.sampling.seed, running.produced);
        GenerationEvent event{id, {}, token, ToyLogprob(token, running.produced), std::nullopt};
        if (++running.produced == running.request.max_tokens) event.finish = FinishReason::kLength;
        events.push_back(event);
        entry = event.finish ? running_.erase(entry) : std::next(entry);
      }
      changed_.notify_all();
      lock.unlock();
      link_->SendEvents(events);
      if (step_.count() > 0) std::this_thread::sleep_for(step_);
      lock.lock();
    }
  }

  const std::chrono::microseconds step_;
  const bool leader_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Running> running_;
  GenerationRequest last_request_;
  int cancels_ = 0;
  bool queue_full_ = false;
  bool stop_ = false;
  bool ended_ = false;
  bool dying_ = false;
  std::optional<std::string> lost_;
  std::unique_ptr<RankLink> link_;
  std::thread engine_;
};

/// A coordinator on a thread, and the supervisor's end of its channel.
class CoordinatorProcess {
 public:
  explicit CoordinatorProcess(const std::function<void(CoordinatorOptions&)>& edit =
                                  [](CoordinatorOptions&) {}) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    supervisor_ = UniqueFd(ends[0]);
    const timeval time{.tv_sec = 5, .tv_usec = 0};
    setsockopt(supervisor_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));

    options_.control = TestPath("control");
    options_.control_token = "secret";
    options_.tokenizer = TestPath("letters.model");
    std::ofstream(*options_.tokenizer, std::ios::binary) << LetterModel().Bytes();
    options_.supervisor_fd = ends[1];
    edit(options_);
    thread_ = std::thread([this] { result_ = RunCoordinator(options_); });
    control_ = After("control ");
    address_ = After("listening ");
  }

  ~CoordinatorProcess() {
    CloseSupervisor();
    if (thread_.joinable()) thread_.join();
  }

  const std::string& address() const { return address_; }
  const CoordinatorOptions& options() const { return options_; }

  void Tell(const std::string& line) {
    const std::string bytes = line + "\n";
    EXPECT_EQ(send(supervisor_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }

  /// The next line from the coordinator; "(none)" after 5 s.
  std::string Line() {
    for (;;) {
      const std::size_t end = input_.find('\n');
      if (end != std::string::npos) {
        const std::string line = input_.substr(0, end);
        input_.erase(0, end + 1);
        return line;
      }
      std::array<char, 256> buffer;
      const ssize_t size = recv(supervisor_.get(), buffer.data(), buffer.size(), 0);
      if (size <= 0) return "(none)";
      input_.append(buffer.data(), static_cast<std::size_t>(size));
    }
  }

  void CloseSupervisor() { supervisor_ = UniqueFd(); }

  int WaitForResult() {
    thread_.join();
    return result_;
  }

  RankLinkOptions RankOptions(std::uint32_t epoch, std::uint32_t rank) const {
    return {.address = control_,
            .token = options_.control_token,
            .epoch = epoch,
            .rank = rank,
            .ranks = options_.ranks};
  }

  std::unique_ptr<FakeRank> StartRank(std::uint32_t epoch, std::uint32_t rank,
                                      std::chrono::microseconds step) const {
    return std::make_unique<FakeRank>(RankOptions(epoch, rank), step);
  }

  /// All ranks of a new epoch, serving; the leader is the first.
  std::vector<std::unique_ptr<FakeRank>> StartEpoch(
      std::uint32_t epoch, std::chrono::microseconds step = std::chrono::microseconds(100)) {
    Tell("epoch " + std::to_string(epoch));
    std::vector<std::unique_ptr<FakeRank>> ranks;
    for (std::uint32_t rank = 0; rank < options_.ranks; ++rank) {
      ranks.push_back(StartRank(epoch, rank, step));
    }
    EXPECT_EQ(Line(), "serving " + std::to_string(epoch));
    return ranks;
  }

 private:
  std::string After(const std::string& prefix) {
    const std::string line = Line();
    EXPECT_EQ(line.substr(0, prefix.size()), prefix);
    return line.size() >= prefix.size() ? line.substr(prefix.size()) : line;
  }

  CoordinatorOptions options_;
  UniqueFd supervisor_;
  std::string input_;
  std::string control_;
  std::string address_;
  std::thread thread_;
  int result_ = -1;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_RPC_COORDINATOR_FIXTURE_H_

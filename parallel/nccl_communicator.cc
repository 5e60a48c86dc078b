#include "parallel/nccl_communicator.h"

#include <fmt/format.h>
#include <nccl.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "parallel/gather_values.h"
#include "parallel/nccl_extras.h"
#include "parallel/row_transfer.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

constexpr int kOldestVersion = NCCL_VERSION(2, 28, 0);

std::string VersionText(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

int LoadedVersion() {
  int version = 0;
  CHECK(ncclGetVersion(&version) == ncclSuccess);
  return version;
}

/// What to do between two looks at something awaited, and how long it has been.
class Pause {
 public:
  void operator()() const {
    const Clock::duration so_far = waited();
    if (so_far < kSpinFor) return;
    if (so_far < kYieldFor) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kSleep);
    }
  }
  Clock::duration waited() const { return Clock::now() - begin_; }

 private:
  static constexpr std::chrono::microseconds kSpinFor{50};
  static constexpr std::chrono::milliseconds kYieldFor{100};
  static constexpr std::chrono::microseconds kSleep{100};

  Clock::time_point begin_ = Clock::now();
};

/// "0-3 6" of the ranks 0, 1, 2, 3 and 6.
std::string RanksText(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const std::size_t begin = i;
    while (i + 1 < ranks.size() && ranks[i + 1] == ranks[i] + 1) ++i;
    if (!text.empty()) text += ' ';
    text += fmt::format("{}", ranks[begin]);
    if (i > begin) text += fmt::format("-{}", ranks[i]);
  }
  return text;
}

/// One NCCL communicator.
struct Clique {
  ncclComm_t communicator = nullptr;  // NCCL writes here when it is made; null: this rank has none
  std::vector<int> members;           // as ranks of the job
  std::int64_t calls = 0;
};

/// What a rank has asked of NCCL, for the report of a failure. Ranks that stopped at different
/// numbers of the same group show who is behind.
struct Call {
  std::int64_t number = 0;  // in its group
  const char* name = "";
  std::int64_t sent_bytes = 0;
  std::int64_t received_bytes = 0;
  const Clique* clique = nullptr;
};

/// All NCCL communicators of this process. What one of them meets ends all.
class NcclJob {
 public:
  NcclJob(int rank, int size, const NcclOptions& options)
      : rank_(rank), size_(size), options_(options) {}
  /// Aborts, too: ncclCommDestroy waits until the peers on this host have called it, and a rank
  /// that unwinds must wait for nobody.
  ~NcclJob() { Abort(); }
  NcclJob(const NcclJob&) = delete;
  NcclJob& operator=(const NcclJob&) = delete;

  const NcclOptions& options() const { return options_; }

  Clique& NewClique(std::vector<int> members) {
    Clique& clique = *cliques_.emplace_back(std::make_unique<Clique>());
    clique.members = std::move(members);
    return clique;
  }

  void RequireLife() const {
    if (failed_) throw CommunicationError("NCCL's groups in this process have been aborted");
  }

  void Record(Clique& clique, const char* name, std::int64_t sent, std::int64_t received) {
    RequireLife();
    latest_[static_cast<std::size_t>(recorded_++) % latest_.size()] = {++clique.calls, name, sent,
                                                                       received, &clique};
  }

  /// Returns when NCCL has done what it was asked for by a call that gave `result`: at most
  /// enqueued it, if that is for the GPU.
  void Finish(ncclResult_t result, const Clique& clique, const char* call, Milliseconds limit) {
    const Pause pause;
    while (result == ncclSuccess || result == ncclInProgress) {
      const ncclResult_t asked = ncclCommGetAsyncError(clique.communicator, &result);
      if (asked != ncclSuccess) result = asked;
      if (result == ncclSuccess) return;
      if (result == ncclInProgress && pause.waited() > limit) {
        Fail(fmt::format("{} of ranks {} has not ended in {}", call, RanksText(clique.members),
                         TimeText(limit)));
      }
      pause();
    }
    Require(result, call, clique);
  }

  void Require(ncclResult_t result, const char* call, const Clique& clique) {
    if (result == ncclSuccess) return;
    Fail(fmt::format("{} of ranks {}: {}{}", call, RanksText(clique.members),
                     ncclGetErrorString(result), LastError(clique.communicator)));
  }

  void Wait(Stream& stream) {
    RequireLife();
    if (cliques_.empty()) {
      stream.Synchronize();
      return;
    }
    const Pause pause;
    while (!stream.queue().Done()) {
      for (const auto& clique : cliques_) {
        if (clique->communicator == nullptr) continue;
        ncclResult_t error = ncclSuccess;
        Require(ncclCommGetAsyncError(clique->communicator, &error), "ncclCommGetAsyncError",
                *clique);
        Require(error, "work on the GPU", *clique);
      }
      if (pause.waited() > options_.wait_limit) {
        Fail(fmt::format("the GPU's work has not ended in {}", TimeText(options_.wait_limit)));
      }
      pause();
    }
  }

  std::optional<std::int64_t> Memory() const {
    std::int64_t sum = 0;
    for (const auto& clique : cliques_) {
      if (clique->communicator == nullptr) continue;
      const std::optional<std::int64_t> bytes = NcclMemoryOf(clique->communicator);
      if (!bytes) return std::nullopt;
      sum += *bytes;
    }
    return sum;
  }

  /// Stops everything, then throws.
  [[noreturn]] void Fail(const std::string& what) {
    const std::string text =
        fmt::format("rank {} of {}, NCCL {}: {}{}", rank_, size_, NcclVersion(), what, Latest());
    Abort();
    failed_ = true;
    throw CommunicationError(text);
  }

 private:
  static constexpr std::size_t kCallsKept = 8;
  static constexpr std::chrono::seconds kAbortLimit{2};

  static std::string TimeText(Milliseconds time) { return fmt::format("{} ms", time.count()); }

  static std::string LastError(ncclComm_t communicator) {
    const char* const text = ncclGetLastError(communicator);
    return text == nullptr || *text == '\0' ? "" : fmt::format(" ({})", text);
  }

  /// "; latest calls: …", the last one first.
  std::string Latest() const {
    std::string text;
    const auto kept = static_cast<std::int64_t>(kCallsKept);
    for (std::int64_t i = recorded_ - 1; i >= std::max<std::int64_t>(0, recorded_ - kept); --i) {
      const Call& call = latest_[static_cast<std::size_t>(i) % latest_.size()];
      text += fmt::format("{}{} {} of ranks {} ({} bytes sent, {} received)",
                          text.empty() ? "; latest calls: " : ", ", call.name, call.number,
                          RanksText(call.clique->members), call.sent_bytes, call.received_bytes);
    }
    return text;
  }

  /// Ends all communicators and their work on the GPU. The latter at once, but ncclCommAbort
  /// returns only when no graph has a call of the communicator, and such graphs may live as long as
  /// our caller: so it runs in threads, which are not waited for for ever. Nothing else is in NCCL
  /// then, which is what it asks for.
  void Abort() {
    const auto aborted =
        std::make_shared<std::vector<std::unique_ptr<Clique>>>(std::exchange(cliques_, {}));
    std::vector<std::future<void>> ends;
    for (const auto& clique : *aborted) {
      if (clique->communicator == nullptr) continue;
      std::packaged_task<void()> ending(
          [aborted, communicator = clique->communicator] { ncclCommAbort(communicator); });
      ends.push_back(ending.get_future());
      std::thread(std::move(ending)).detach();
    }
    const auto limit = Clock::now() + kAbortLimit;
    for (const std::future<void>& end : ends) end.wait_until(limit);
  }

  const int rank_;
  const int size_;
  const NcclOptions options_;
  std::vector<std::unique_ptr<Clique>> cliques_;
  std::array<Call, kCallsKept> latest_;
  std::int64_t recorded_ = 0;
  bool failed_ = false;
};

ncclConfig_t Config() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

class NcclCommunicator final : public Communicator {
 public:
  /// `clique` is null in a group of one.
  NcclCommunicator(std::unique_ptr<Communicator> control, Gpu& gpu, std::shared_ptr<NcclJob> job,
                   Clique* clique)
      : control_(std::move(control)), gpu_(gpu), job_(std::move(job)), clique_(clique) {}

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    if (gathered.device() == Device::kCpu) {
      control_->AllGatherRows(gathered, mine, rows, stream);
      return;
    }
    const std::int64_t row_bytes = CheckAllGatherRows(*this, gathered, mine, rows, Device::kCuda);
    const std::int64_t my_bytes = rows[Index(rank())] * row_bytes;
    const std::int64_t all_bytes = SumOf(rows) * row_bytes;
    if (all_bytes == 0) return;
    if (std::equal(rows.begin() + 1, rows.end(), rows.begin()) && clique_ != nullptr) {
      job_->Record(*clique_, "AllGatherRows", my_bytes * (size() - 1), all_bytes - my_bytes);
      job_->Finish(ncclAllGather(mine.raw(), gathered.raw(), Count(my_bytes), kByte,
                                 clique_->communicator, Handle(stream)),
                   *clique_, "ncclAllGather", job_->options().wait_limit);
      return;
    }
    if (clique_ != nullptr) {
      job_->Record(*clique_, "AllGatherRows", my_bytes * (size() - 1), all_bytes - my_bytes);
      Exchange(stream, [&](PeerCalls& calls) {
        std::byte* place = gathered.raw();
        for (int r = 0; r < size(); ++r) {
          const std::int64_t bytes = rows[Index(r)] * row_bytes;
          if (r != rank()) {
            calls.Send(mine.raw(), my_bytes, r);
            calls.Receive(place, bytes, r);
          }
          place += bytes;
        }
      });
    }
    CopyOwn(gathered, SumOf(rows.first(Index(rank()))), mine, 0, rows[Index(rank())], stream);
  }

  void VisitRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                 const RowVisitor& visit, Stream& stream) override {
    if (gathered.device() == Device::kCpu) {
      control_->VisitRows(gathered, mine, rows, visit, stream);
    } else {
      Communicator::VisitRows(gathered, mine, rows, visit, stream);
    }
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    if (recv.device() == Device::kCpu) {
      control_->AllToAllRows(recv, recv_rows, send, send_rows, stream);
      return;
    }
    const std::int64_t row_bytes =
        CheckAllToAllRows(*this, recv, recv_rows, send, send_rows, Device::kCuda);
    const std::int64_t my_bytes = send_rows[Index(rank())] * row_bytes;
    if (clique_ != nullptr) {
      job_->Record(*clique_, "AllToAllRows", SumOf(send_rows) * row_bytes - my_bytes,
                   SumOf(recv_rows) * row_bytes - my_bytes);
      Exchange(stream, [&](PeerCalls& calls) {
        const std::byte* from = send.raw();
        std::byte* to = recv.raw();
        for (int r = 0; r < size(); ++r) {
          const std::int64_t sent = send_rows[Index(r)] * row_bytes;
          const std::int64_t received = recv_rows[Index(r)] * row_bytes;
          if (r != rank()) {
            calls.Send(from, sent, r);
            calls.Receive(to, received, r);
          }
          from += sent;
          to += received;
        }
      });
    }
    CopyOwn(recv, SumOf(recv_rows.first(Index(rank()))), send,
            SumOf(send_rows.first(Index(rank()))), send_rows[Index(rank())], stream);
  }

  void Broadcast(std::vector<std::byte>& message, int root) override {
    control_->Broadcast(message, root);
  }
  void Barrier() override { control_->Barrier(); }

  Arena NewArena(std::int64_t bytes) override { return Arena(gpu_, bytes); }

  std::unique_ptr<Communicator> Split(int color) override {
    return Part(color, control_->Split(color));
  }
  std::unique_ptr<Communicator> SplitByNode() override {
    std::unique_ptr<Communicator> node = control_->SplitByNode();
    const int first = GatherValues(*node, rank()).front();
    return Part(first, std::move(node));
  }

  void Wait(Stream& stream) override {
    if (stream.device() == Device::kCuda) job_->Wait(stream);
  }
  bool capturable() const override { return true; }

  const NcclJob& job() const { return *job_; }

 private:
  static constexpr ncclDataType_t kByte = ncclUint8;  // nothing is added here

  static std::size_t Index(int rank) { return static_cast<std::size_t>(rank); }
  static std::size_t Count(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }
  static cudaStream_t Handle(Stream& stream) {
    return static_cast<cudaStream_t>(stream.queue().handle());
  }

  static void CopyOwn(TensorView to, std::int64_t to_row, ConstTensorView from,
                      std::int64_t from_row, std::int64_t rows, Stream& stream) {
    const ConstTensorView part = from.Rows(from_row, rows);
    if (part.bytes() > 0) CopyBytes(to.Rows(to_row, rows), part, part.bytes(), stream);
  }

  /// Sends and receives that NCCL runs together. Nothing is sent where both sides know of nothing.
  class PeerCalls {
   public:
    PeerCalls(ncclComm_t communicator, cudaStream_t stream)
        : communicator_(communicator), stream_(stream) {}

    void Send(const std::byte* from, std::int64_t bytes, int peer) {
      if (bytes == 0 || result_ != ncclSuccess) return;
      Keep(ncclSend(from, Count(bytes), kByte, peer, communicator_, stream_));
    }
    void Receive(std::byte* to, std::int64_t bytes, int peer) {
      if (bytes == 0 || result_ != ncclSuccess) return;
      Keep(ncclRecv(to, Count(bytes), kByte, peer, communicator_, stream_));
    }
    ncclResult_t result() const { return result_; }

   private:
    void Keep(ncclResult_t result) {
      if (result != ncclInProgress) result_ = result;
    }

    ncclComm_t communicator_;
    cudaStream_t stream_;
    ncclResult_t result_ = ncclSuccess;
  };

  template <class MakeCalls>
  void Exchange(Stream& stream, const MakeCalls& make_calls) {
    job_->Require(ncclGroupStart(), "ncclGroupStart", *clique_);
    PeerCalls calls(clique_->communicator, Handle(stream));
    make_calls(calls);
    const ncclResult_t end = ncclGroupEnd();
    job_->Require(calls.result(), "ncclSend or ncclRecv", *clique_);
    job_->Finish(end, *clique_, "ncclGroupEnd", job_->options().wait_limit);
  }

  /// The group of those who bring the same colour, which are the ranks of `control`.
  std::unique_ptr<Communicator> Part(int color, std::unique_ptr<Communicator> control) {
    job_->RequireLife();
    Clique* clique = nullptr;
    if (clique_ != nullptr) {
      const std::vector<int> colors = GatherValues(*control_, color);
      std::vector<int> members;
      for (int r = 0; r < size(); ++r) {
        if (colors[Index(r)] == color) members.push_back(clique_->members[Index(r)]);
      }
      std::vector<int> sorted = colors;
      std::sort(sorted.begin(), sorted.end());
      const bool all_alone = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
      if (members.size() == colors.size()) {
        clique = clique_;
      } else if (!all_alone) {
        clique = SplitClique(color, std::move(members));
      }
    }
    return std::make_unique<NcclCommunicator>(std::move(control), gpu_, job_, clique);
  }

  Clique* SplitClique(int color, std::vector<int> members) {
    const bool alone = members.size() == 1;
    job_->Record(*clique_, "Split", 0, 0);
    Clique& part = job_->NewClique(std::move(members));
    ncclConfig_t config = Config();
    const Milliseconds limit = job_->options().start_limit;
    job_->Finish(ncclCommSplit(clique_->communicator, alone ? NCCL_SPLIT_NOCOLOR : color, rank(),
                               &part.communicator, &config),
                 *clique_, "ncclCommSplit", limit);
    if (alone) return nullptr;
    job_->Finish(ncclSuccess, part, "ncclCommSplit", limit);
    return &part;
  }

  std::unique_ptr<Communicator> control_;
  Gpu& gpu_;
  std::shared_ptr<NcclJob> job_;
  Clique* clique_;
};

/// What each rank tells the others before they meet in NCCL.
struct RankFacts {
  int version = 0;
  int has_key = 0;
};

void CheckFacts(const std::vector<RankFacts>& facts, bool wants_key) {
  for (std::size_t r = 0; r < facts.size(); ++r) {
    const int version = facts[r].version;
    if (version < kOldestVersion) {
      throw UserError(ExitStatus::kConfig,
                      fmt::format("rank {} has NCCL {}; Jubal needs at least {}", r,
                                  VersionText(version), VersionText(kOldestVersion)));
    }
    if (version != facts.front().version) {
      throw UserError(ExitStatus::kConfig,
                      fmt::format("rank 0 has NCCL {}, but rank {} has {}",
                                  VersionText(facts.front().version), r, VersionText(version)));
    }
    if (wants_key && facts[r].has_key == 0) {
      throw UserError(
          ExitStatus::kConfig,
          fmt::format("{} is set for some ranks, but not for rank {}", kNcclKeyVariable, r));
    }
  }
}

}  // namespace

std::unique_ptr<Communicator> OverNccl(std::unique_ptr<Communicator> control, Gpu& gpu,
                                       const NcclOptions& options) {
  auto job = std::make_shared<NcclJob>(control->rank(), control->size(), options);
  Clique* clique = nullptr;
  if (control->size() > 1) {
    const RankFacts mine{.version = LoadedVersion(),
                         .has_key = options.encryption_key.empty() ? 0 : 1};
    const std::vector<RankFacts> facts = GatherValues(*control, mine);
    const bool has_key = std::any_of(facts.begin(), facts.end(),
                                     [](const RankFacts& rank) { return rank.has_key != 0; });
    const bool encrypts = has_key && control->SplitByNode()->size() < control->size();
    CheckFacts(facts, encrypts);
    if (encrypts) EncryptNccl(options.encryption_key);

    std::vector<int> members(facts.size());
    for (std::size_t r = 0; r < members.size(); ++r) members[r] = static_cast<int>(r);
    clique = &job->NewClique(std::move(members));
    ncclUniqueId id{};
    if (control->rank() == 0) job->Require(ncclGetUniqueId(&id), "ncclGetUniqueId", *clique);
    std::vector<std::byte> message(sizeof(id));
    std::memcpy(message.data(), &id, sizeof(id));
    control->Broadcast(message, 0);
    CHECK_EQ(message.size(), sizeof(id));
    std::memcpy(&id, message.data(), sizeof(id));

    ncclConfig_t config = Config();
    job->Finish(ncclCommInitRankConfig(&clique->communicator, control->size(), id, control->rank(),
                                       &config),
                *clique, "ncclCommInitRankConfig", options.start_limit);
  }
  return std::make_unique<NcclCommunicator>(std::move(control), gpu, std::move(job), clique);
}

std::optional<std::int64_t> NcclMemory(const Communicator& group) {
  return dynamic_cast<const NcclCommunicator&>(group).job().Memory();
}

std::string NcclVersion() { return VersionText(LoadedVersion()); }

}  // namespace jubal

#include "rpc/coordinator.h"

#include <fmt/format.h>
#include <poll.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "rpc/client_port.h"
#include "rpc/control_frames.h"
#include "rpc/generation_service.h"
#include "rpc/request_table.h"
#include "rpc/socket.h"
#include "rpc/text_worker.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxHelloPayload = 4096;  // strangers do not make us hold more
constexpr std::size_t kMaxStrangers = 64;       // connections that said no Hello yet
constexpr std::chrono::seconds kHelloTime{10};
constexpr std::size_t kMaxLeaderBacklog = std::size_t{256} << 20;
constexpr std::size_t kMaxSupervisorLine = 64 << 10;
constexpr std::chrono::seconds kAnswerTime{5};
constexpr std::chrono::milliseconds kDrainPollTime{20};

// What a rank or a person wrote, fit for a line of a log or of the supervisor's channel.
std::string OneLine(std::string_view text) {
  std::string line(text.substr(0, 1000));
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < ' '; }, ' ');
  return line;
}

// Takes as long for a wrong token as for the right one.
bool SameToken(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  }
  return difference == 0;
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// One control connection.
struct RankConnection {
  UniqueFd fd;
  FrameReader frames{kMaxHelloPayload};
  std::string out;  // not yet taken by the system
  Clock::time_point connected = Clock::now();
  std::uint32_t epoch = 0;
  std::uint32_t rank = 0;
  bool greeted = false;  // it said Hello, and belongs to us
  std::string name;      // "rank 2 (pid 123 on host x)"
  std::string fatal;     // its last words
  bool closed = false;
};

class Coordinator {
 public:
  explicit Coordinator(const CoordinatorOptions& options);
  ~Coordinator();

  int Run();

 private:
  enum class Phase {
    kNone,      // no epoch yet, or it ended
    kStarting,  // ranks are expected
    kServing,
    kFailed,  // reported; the supervisor is to end it
  };

  void Wait();
  void TellSupervisor(const std::string& line);
  bool ReadSupervisor();  // false at its end
  void OnSupervisorLine(std::string_view line);
  void BeginEpoch(std::uint32_t epoch);
  void EndEpoch(Phase phase, const std::string& reason);
  void FailEpoch(const std::string& reason);
  void Drain();
  bool Drained();

  void AcceptRanks();
  void ReadRank(RankConnection& connection);
  void OnFrame(RankConnection& connection, Frame frame);
  void OnHello(RankConnection& connection, const Frame& frame, const HelloFrame& hello);
  void OnRankFrame(RankConnection& connection, FrameBody body);
  void OnRankLost(RankConnection& connection, const std::string& how);
  void Refuse(RankConnection& connection, const std::string& reason);
  void Send(RankConnection& connection, FrameBody body);
  void Flush(RankConnection& connection);
  void SendOutbox();
  void ServeIfReady();
  void DropClosed();
  RankConnection* Leader();
  std::size_t RanksConnected() const;

  const CoordinatorOptions options_;
  spdlog::logger log_;
  const UniqueFd supervisor_;
  const UniqueFd wake_;
  const UniqueFd control_;
  const std::string control_address_;
  const std::optional<Tokenizer> tokenizer_;
  RequestTable table_;
  TextWorker worker_;
  GenerationService service_;
  ClientPort clients_;

  std::string supervisor_input_;
  std::list<RankConnection> ranks_;  // and strangers
  Phase phase_ = Phase::kNone;
  std::uint32_t epoch_ = 0;
  std::optional<ServingInfo> ready_;  // what the leader of this epoch said
  bool draining_ = false;
  bool stop_sent_ = false;
  std::optional<Clock::time_point> ranks_gone_;  // when a drain found no rank any more
};

UniqueFd ListenForRanks(const CoordinatorOptions& options) {
  if (!IsSocketPath(options.control) && options.control_token.empty()) {
    throw UserError(ExitStatus::kUsage,
                    fmt::format("{}: ranks on TCP need a control token", options.control));
  }
  return ListenOn(options.control);
}

TextLimits ToTextLimits(const CoordinatorOptions& options) {
  return {.has_tokenizer = options.tokenizer.has_value(),
          .max_text_bytes = options.max_text_bytes,
          .default_max_tokens = options.default_max_tokens};
}

Coordinator::Coordinator(const CoordinatorOptions& options)
    : options_(options),
      log_("coordinator", std::make_shared<spdlog::sinks::stderr_color_sink_mt>()),
      supervisor_(options.supervisor_fd),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      control_(ListenForRanks(options)),
      control_address_(ListeningAddress(control_, options.control)),
      tokenizer_(options.tokenizer
                     ? std::optional<Tokenizer>(Tokenizer::FromFile(*options.tokenizer))
                     : std::nullopt),
      table_(options.max_open_requests,
             [fd = wake_.get()] {
               const std::uint64_t one = 1;
               [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof(one));
             }),
      service_(&table_, &worker_, tokenizer_ ? &*tokenizer_ : nullptr, ToTextLimits(options),
               options.model_name),
      clients_({.listen = options.listen,
                .max_message_bytes = options.max_message_bytes,
                .max_connection_streams = options.max_connection_streams},
               &service_) {}

Coordinator::~Coordinator() {
  if (IsSocketPath(control_address_)) unlink(control_address_.c_str());
}

int Coordinator::Run() {
  TellSupervisor("control " + control_address_);
  TellSupervisor("listening " + clients_.address());
  log_.info("clients connect to {}, ranks to {}", clients_.address(), control_address_);
  for (;;) {
    Wait();
    if (!ReadSupervisor()) {
      log_.error("the supervisor is gone");
      clients_.SetServing(false);
      table_.EndServing("the server is ending");
      return 1;
    }
    clients_.AcceptConnections();
    AcceptRanks();
    for (RankConnection& connection : ranks_) ReadRank(connection);
    ServeIfReady();
    SendOutbox();
    for (RankConnection& connection : ranks_) Flush(connection);
    DropClosed();
    if (Drained()) break;
  }
  log_.info("drained");
  clients_.Shutdown(1);
  return 0;
}

// Until something is to be done. Everything is tried after it: descriptors do not block.
void Coordinator::Wait() {
  std::vector<pollfd> fds = {{.fd = supervisor_.get(), .events = POLLIN, .revents = 0},
                             {.fd = wake_.get(), .events = POLLIN, .revents = 0},
                             {.fd = control_.get(), .events = POLLIN, .revents = 0},
                             {.fd = clients_.fd(), .events = POLLIN, .revents = 0}};
  std::optional<Clock::duration> time;
  for (const RankConnection& connection : ranks_) {
    const short events = connection.out.empty() ? POLLIN : POLLIN | POLLOUT;
    fds.push_back({.fd = connection.fd.get(), .events = events, .revents = 0});
    if (!connection.greeted) time = kHelloTime;
  }
  if (draining_ && ranks_.empty()) time = kDrainPollTime;
  const int milliseconds =
      time ? static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(*time).count()) : -1;
  const int ready = poll(fds.data(), fds.size(), milliseconds);
  CHECK(ready >= 0 || errno == EINTR);
  std::uint64_t wakes = 0;
  [[maybe_unused]] const ssize_t size = read(wake_.get(), &wakes, sizeof(wakes));
}

void Coordinator::TellSupervisor(const std::string& line) {
  const std::string bytes = line + '\n';
  // A supervisor that is gone is noticed when its next line is read.
  [[maybe_unused]] const ssize_t sent =
      send(supervisor_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

bool Coordinator::ReadSupervisor() {
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t size = recv(supervisor_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (size <= 0) return false;
    supervisor_input_.append(buffer.data(), static_cast<std::size_t>(size));
    for (std::size_t end; (end = supervisor_input_.find('\n')) != std::string::npos;) {
      const std::string line = supervisor_input_.substr(0, end);
      supervisor_input_.erase(0, end + 1);
      OnSupervisorLine(line);
    }
    CHECK_LE(supervisor_input_.size(), kMaxSupervisorLine);
  }
}

void Coordinator::OnSupervisorLine(std::string_view line) {
  const std::string text(line);
  unsigned epoch = 0;
  int reason = 0;
  if (text == "drain") {
    Drain();
  } else if (std::sscanf(text.c_str(), "epoch %u%n", &epoch, &reason) == 1 &&
             std::cmp_equal(reason, text.size())) {
    BeginEpoch(epoch);
  } else if (std::sscanf(text.c_str(), "epoch-ended %u%n", &epoch, &reason) == 1) {
    const std::string why = OneLine(line.substr(static_cast<std::size_t>(reason)));
    if (epoch == epoch_) {
      EndEpoch(Phase::kNone, fmt::format("the model's processes ended:{}",
                                         why.empty() ? " no reason is known" : why));
    }
  } else {
    log_.error("the supervisor says what nobody understands: {}", OneLine(line));
  }
}

void Coordinator::BeginEpoch(std::uint32_t epoch) {
  CHECK_LT(epoch_, epoch);
  EndEpoch(Phase::kStarting, "the model is being started again");
  for (RankConnection& connection : ranks_) {
    if (connection.greeted) connection.closed = true;  // of an epoch that is over
  }
  epoch_ = epoch;
  if (!draining_) table_.Refuse("the model is being loaded");
  log_.info("epoch {}: {} ranks are expected", epoch, options_.ranks);
}

// Open requests get UNAVAILABLE; nothing happens if the epoch has ended before.
void Coordinator::EndEpoch(Phase phase, const std::string& reason) {
  const Phase before = std::exchange(phase_, phase);
  ready_.reset();
  if (before != Phase::kStarting && before != Phase::kServing) return;
  clients_.SetServing(false);
  table_.EndServing(draining_ ? fmt::format("the server is ending; {}", reason) : reason);
  log_.warn("epoch {} ended: {}", epoch_, reason);
}

void Coordinator::FailEpoch(const std::string& reason) {
  EndEpoch(Phase::kFailed, reason);
  TellSupervisor(fmt::format("epoch-failed {} {}", epoch_, reason));
}

void Coordinator::Drain() {
  if (std::exchange(draining_, true)) return;
  log_.info("draining");
  clients_.SetServing(false);
  table_.Refuse("the server is ending");
}

bool Coordinator::Drained() {
  if (!draining_ || RanksConnected() > 0) return false;
  if (phase_ == Phase::kStarting) return false;  // its ranks may still come
  const auto now = Clock::now();
  if (!ranks_gone_) ranks_gone_ = now;
  return table_.all_answered() || now - *ranks_gone_ > kAnswerTime;
}

void Coordinator::AcceptRanks() {
  for (;;) {
    UniqueFd fd(accept4(control_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    if (ranks_.size() >= options_.ranks + kMaxStrangers) continue;
    SendAtOnce(fd);
    ranks_.emplace_back().fd = std::move(fd);
  }
}

void Coordinator::ReadRank(RankConnection& connection) {
  if (!connection.greeted && Clock::now() - connection.connected > kHelloTime) {
    connection.closed = true;
  }
  std::array<std::byte, 64 << 10> buffer;
  while (!connection.closed) {
    const ssize_t size = recv(connection.fd.get(), buffer.data(), buffer.size(), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (size <= 0) return OnRankLost(connection, "ended");
    connection.frames.Append(std::span(buffer).first(static_cast<std::size_t>(size)));
    try {
      while (!connection.closed) {
        std::optional<Frame> frame = connection.frames.Next();
        if (!frame) break;
        OnFrame(connection, std::move(*frame));
      }
    } catch (const FrameError& error) {
      OnRankLost(connection, fmt::format("broke the protocol: {}", error.what()));
    }
  }
}

void Coordinator::OnFrame(RankConnection& connection, Frame frame) {
  if (!connection.greeted) {
    if (const auto* hello = std::get_if<HelloFrame>(&frame.body)) {
      return OnHello(connection, frame, *hello);
    }
    return Refuse(connection, "the first frame is not Hello");
  }
  if (frame.epoch != connection.epoch || frame.rank != connection.rank) {
    return OnRankLost(connection, "sent a frame in another's name");
  }
  if (auto* fatal = std::get_if<FatalFrame>(&frame.body)) {
    connection.fatal = OneLine(fatal->message);
    return;
  }
  // What an epoch that failed still says is dropped.
  if (connection.epoch != epoch_ || phase_ == Phase::kFailed || phase_ == Phase::kNone) return;
  OnRankFrame(connection, std::move(frame.body));
}

void Coordinator::OnHello(RankConnection& connection, const Frame& frame, const HelloFrame& hello) {
  connection.epoch = frame.epoch;
  connection.rank = frame.rank;
  if (!SameToken(hello.token, options_.control_token)) {
    return Refuse(connection, "its control token is wrong");
  }
  // The supervisor announced the epoch before it started the rank, but perhaps after this turn of
  // the loop read its lines.
  if (frame.epoch > epoch_) ReadSupervisor();
  if (frame.epoch != epoch_ || phase_ != Phase::kStarting) {
    return Refuse(connection, fmt::format("epoch {} is not starting", frame.epoch));
  }
  if (hello.ranks != options_.ranks || frame.rank >= options_.ranks) {
    return Refuse(connection, fmt::format("there are {} ranks", options_.ranks));
  }
  for (const RankConnection& other : ranks_) {
    if (other.greeted && !other.closed && other.epoch == frame.epoch && other.rank == frame.rank) {
      return Refuse(connection, fmt::format("{} is connected already", other.name));
    }
  }
  connection.greeted = true;
  connection.name =
      fmt::format("rank {} (pid {} on host {})", frame.rank, hello.pid, OneLine(hello.host));
  connection.frames.set_max_payload(kMaxFramePayload);
  log_.info("epoch {}: {} is here", epoch_, connection.name);
}

void Coordinator::OnRankFrame(RankConnection& connection, FrameBody body) {
  if (connection.rank != 0) return OnRankLost(connection, "sent what only the leader may send");
  if (auto* ready = std::get_if<ReadyFrame>(&body)) {
    ready_ = std::move(ready->info);
  } else if (const auto* events = std::get_if<EventsFrame>(&body)) {
    table_.OnEvents(epoch_, events->events);
  } else if (const auto* rejected = std::get_if<RejectedFrame>(&body)) {
    table_.OnRejected(epoch_, rejected->id, rejected->rejection);
  } else {
    OnRankLost(connection, "sent what only the coordinator may send");
  }
}

void Coordinator::OnRankLost(RankConnection& connection, const std::string& how) {
  connection.closed = true;
  if (!connection.greeted || connection.epoch != epoch_) return;
  if (phase_ != Phase::kStarting && phase_ != Phase::kServing) return;
  if (stop_sent_ && table_.empty()) {  // as it was told to
    if (connection.rank == 0) EndEpoch(Phase::kNone, "drained");
    return;
  }
  FailEpoch(connection.fatal.empty()
                ? fmt::format("{} {}", connection.name, how)
                : fmt::format("{} {}: {}", connection.name, how, connection.fatal));
}

void Coordinator::Refuse(RankConnection& connection, const std::string& reason) {
  log_.warn("a control connection is refused: {}", reason);
  Send(connection, FatalFrame{reason});
  Flush(connection);
  connection.closed = true;
}

void Coordinator::Send(RankConnection& connection, FrameBody body) {
  connection.out += EncodeFrame({connection.epoch, connection.rank, std::move(body)});
}

void Coordinator::Flush(RankConnection& connection) {
  std::size_t begin = 0;
  while (begin < connection.out.size()) {
    const ssize_t sent = send(connection.fd.get(), connection.out.data() + begin,
                              connection.out.size() - begin, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) break;  // later; or lost, which reading tells
    begin += static_cast<std::size_t>(sent);
  }
  connection.out.erase(0, begin);
}

void Coordinator::SendOutbox() {
  RankConnection* const leader = Leader();
  if (leader == nullptr || phase_ != Phase::kServing) return;
  for (FrameBody& body : table_.TakeOutbox()) Send(*leader, std::move(body));
  if (draining_ && !std::exchange(stop_sent_, true)) Send(*leader, StopFrame{});
  if (leader->out.size() > kMaxLeaderBacklog) OnRankLost(*leader, "does not read");
}

void Coordinator::ServeIfReady() {
  if (phase_ != Phase::kStarting || !ready_ || RanksConnected() < options_.ranks) return;
  phase_ = Phase::kServing;
  if (!draining_) {
    table_.BeginServing(epoch_, std::move(*ready_));
    clients_.SetServing(true);
  }
  TellSupervisor(fmt::format("serving {}", epoch_));
  log_.info("epoch {} is serving", epoch_);
}

void Coordinator::DropClosed() {
  ranks_.remove_if([](const RankConnection& connection) { return connection.closed; });
}

RankConnection* Coordinator::Leader() {
  for (RankConnection& connection : ranks_) {
    if (connection.greeted && !connection.closed && connection.epoch == epoch_ &&
        connection.rank == 0) {
      return &connection;
    }
  }
  return nullptr;
}

std::size_t Coordinator::RanksConnected() const {
  return static_cast<std::size_t>(
      std::count_if(ranks_.begin(), ranks_.end(), [this](const RankConnection& connection) {
        return connection.greeted && !connection.closed && connection.epoch == epoch_;
      }));
}

}  // namespace

int RunCoordinator(const CoordinatorOptions& options) {
  RaiseDescriptorLimit();
  return Coordinator(options).Run();
}

}  // namespace jubal

#include "launch/supervisor.h"

#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <system_error>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "kernels/error.h"
#include "launch/child_process.h"
#include "launch/mpirun.h"
#include "launch/private_directory.h"
#include "launch/restart_policy.h"
#include "rpc/rank_link.h"

namespace jubal {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kStartPatience{30};  // for the coordinator's first lines
constexpr std::chrono::seconds kDrainPatience{30};  // for open requests
constexpr std::chrono::seconds kEndPatience{2};     // for mpirun to end its ranks by itself
constexpr std::chrono::seconds kKillPatience{30};   // for the kernel to free a killed rank's memory
constexpr std::chrono::milliseconds kNamePatience{300};  // for the coordinator to name the culprit

struct StopAsked {};
struct TimedOut {};
struct ChildEnded {
  pid_t process = 0;
  int status = 0;  // as waitpid gives it
};
using Event = std::variant<StopAsked, TimedOut, ChildEnded, CoordinatorLine>;

/// The exit status to end with when a child ended like this: what the user can mend passes on.
int StatusFor(int wait_status) {
  const int status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : EXIT_FAILURE;
  return status >= 64 && status <= 78 ? status : EXIT_FAILURE;
}

std::string RandomToken() {
  std::array<unsigned char, 32> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw std::system_error(errno, std::generic_category(), "getrandom");
  }
  std::string token;
  for (const unsigned char byte : bytes) token += fmt::format("{:02x}", byte);
  return token;
}

/// The first IPv4 address of this host that others may reach.
std::string HostAddress() {
  std::string address = "127.0.0.1";
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return address;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    const auto* const ipv4 = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
    if (ntohl(ipv4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    inet_ntop(AF_INET, &ipv4->sin_addr, text.data(), text.size());
    address = text.data();
    break;
  }
  freeifaddrs(interfaces);
  return address;
}

/// What happens to the supervisor, one event at a time: signals, ends of children, lines of the
/// coordinator.
class EventSource {
 public:
  EventSource() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals, signal);
    sigprocmask(SIG_BLOCK, &signals, &former_mask_);
    signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    // Ranks whose mpirun was killed become this process's children: none can get lost.
    prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ~EventSource() {
    close(signal_fd_);
    if (coordinator_fd_ >= 0) close(coordinator_fd_);
    sigprocmask(SIG_SETMASK, &former_mask_, nullptr);
  }
  EventSource(const EventSource&) = delete;
  EventSource& operator=(const EventSource&) = delete;

  /// Takes over the socket to the coordinator.
  void ListenTo(int coordinator_fd) { coordinator_fd_ = coordinator_fd; }

  Event Next(Clock::time_point deadline) {
    while (true) {
      ReadLines();  // before ends of children: the coordinator's last words explain them
      ReadSignals();
      Reap();
      if (!events_.empty()) {
        Event event = std::move(events_.front());
        events_.pop_front();
        return event;
      }
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
      if (left.count() <= 0) return TimedOut{};
      std::array<pollfd, 2> fds{pollfd{signal_fd_, POLLIN, 0}, pollfd{coordinator_fd_, POLLIN, 0}};
      constexpr std::int64_t kLongestMs = 60'000;
      poll(fds.data(), fds.size(),
           static_cast<int>(std::min<std::int64_t>(left.count(), kLongestMs)));
    }
  }

  void Tell(std::string line) {
    line += '\n';
    send(coordinator_fd_, line.data(), line.size(), MSG_NOSIGNAL);  // its end comes as an event
  }

  /// Collects children that have ended, orphans among them.
  void Reap() {
    int status = 0;
    for (pid_t child = 0; (child = waitpid(-1, &status, WNOHANG)) > 0;) {
      events_.emplace_back(ChildEnded{child, status});
    }
  }

 private:
  void ReadSignals() {
    signalfd_siginfo info{};
    while (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      if (info.ssi_signo != SIGCHLD) events_.emplace_back(StopAsked{});
    }
  }

  void ReadLines() {
    std::array<char, 4096> bytes{};
    while (coordinator_fd_ >= 0) {
      const ssize_t size = recv(coordinator_fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (size == 0) {
        close(coordinator_fd_);
        coordinator_fd_ = -1;
      }
      if (size <= 0) return;
      unread_.append(bytes.data(), static_cast<std::size_t>(size));
      for (std::size_t end = 0; (end = unread_.find('\n')) != std::string::npos;
           unread_.erase(0, end + 1)) {
        if (auto line = ParseCoordinatorLine(std::string_view(unread_).substr(0, end))) {
          events_.emplace_back(std::move(*line));
        } else {
          spdlog::error("the coordinator said '{}'", unread_.substr(0, end));
        }
      }
    }
  }

  sigset_t former_mask_{};
  int signal_fd_ = -1;
  int coordinator_fd_ = -1;
  std::string unread_;
  std::deque<Event> events_;
};

class Supervisor {
 public:
  explicit Supervisor(const Options& options)
      : options_(options),
        program_(fs::read_symlink("/proc/self/exe")),
        sockets_(RuntimeParent()),
        shared_memory_(SharedMemoryParent()) {
    if (options.hostfile) token_ = RandomToken();
  }
  ~Supervisor() {
    EndJob();
    if (coordinator_ > 0) kill(coordinator_, SIGKILL);
    AwaitEnd({}, kKillPatience);
  }
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  int Run() {
    StartCoordinator();
    if (const std::optional<int> status = AwaitCoordinator()) return *status;
    RestartPolicy policy;
    for (epoch_ = 1;; ++epoch_) {
      StartJob();
      const JobEnd end = WatchJob();
      EndJob();
      events_.Tell(fmt::format("epoch-ended {} {}", epoch_, end.reason));
      if (end.status) return *end.status;
      if (stopping_) return Drain();
      if (!announced_) {
        spdlog::error("the ranks never became ready: {}", end.reason);
        return end.job_status;
      }
      const auto wait = policy.AfterFailure(Clock::now());
      if (!wait) {
        spdlog::error("epoch {} ended: {}; that was the {}th failure in {} minutes, giving up",
                      epoch_, end.reason, RestartPolicy::kMostFailures,
                      RestartPolicy::kWindow.count());
        return end.job_status;
      }
      spdlog::warn("epoch {} ended: {}; epoch {} starts {}", epoch_, end.reason, epoch_ + 1,
                   wait->count() == 0 ? "now" : fmt::format("in {} s", wait->count()));
      if (const std::optional<int> status = Pause(*wait)) return *status;
      if (stopping_) return Drain();
    }
  }

 private:
  /// Why an MPI job is over.
  struct JobEnd {
    std::string reason;
    int job_status = EXIT_FAILURE;  // to exit with if the job is not started again
    std::optional<int> status;      // set: there is no coordinator any more, exit with this
  };

  void StartCoordinator() {
    std::array<int, 2> pair{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) {
      throw std::system_error(errno, std::generic_category(), "socketpair");
    }
    const std::string control = token_ ? options_.control_host.value_or(HostAddress()) + ":0"
                                       : (sockets_.path() / "control").string();
    ChildCommand command{
        .arguments = {program_.string(), "coordinator", "--model=" + options_.model,
                      "--listen=" + options_.listen, "--control=" + control, "-n",
                      fmt::format("{}", options_.ranks),
                      fmt::format("--supervisor-fd={}", pair[1])},
        .environment = {},
        .death_signal = SIGKILL,
        .kept_fd = pair[1]};
    if (token_) command.environment[kControlTokenVariable] = *token_;
    events_.ListenTo(pair[0]);
    coordinator_ = StartChild(command);
    close(pair[1]);
  }

  /// Waits for the coordinator's addresses. Returns an exit status if it is over already.
  std::optional<int> AwaitCoordinator() {
    const auto deadline = Clock::now() + kStartPatience;
    while (address_.empty()) {
      const Event event = events_.Next(deadline);
      if (const auto* ended = std::get_if<ChildEnded>(&event)) return CoordinatorEnded(*ended);
      if (std::holds_alternative<StopAsked>(event)) return EXIT_SUCCESS;
      if (std::holds_alternative<TimedOut>(event)) {
        spdlog::error("the coordinator did not start within {} s", kStartPatience.count());
        return EXIT_FAILURE;
      }
      const auto& line = std::get<CoordinatorLine>(event);
      if (const auto* control = std::get_if<ControlAt>(&line)) control_ = control->address;
      if (const auto* listening = std::get_if<ListeningAt>(&line)) address_ = listening->address;
    }
    return std::nullopt;
  }

  /// One that exits with a status for the user has told the user why.
  int CoordinatorEnded(const ChildEnded& ended) {
    coordinator_ = 0;
    const int status = StatusFor(ended.status);
    if (status == EXIT_FAILURE) {
      spdlog::error("the coordinator ended with {}", EndText(ended.status));
    }
    return status;
  }

  void StartJob() {
    const std::string name = fmt::format("epoch-{}", epoch_);
    std::vector<std::string> arguments{"rank", "--coordinator=" + control_,
                                       fmt::format("--epoch={}", epoch_)};
    arguments.insert(arguments.end(), options_.rank_arguments.begin(),
                     options_.rank_arguments.end());
    const MpiJob job{.program = program_,
                     .ranks = options_.ranks,
                     .hostfile = options_.hostfile,
                     .mpirun_arguments = options_.mpirun_arguments,
                     .rank_arguments = std::move(arguments),
                     .token = token_,
                     .session_directory = sockets_.path() / name,
                     .shared_memory_directory = shared_memory_.path() / name};
    fs::create_directory(job.session_directory);
    fs::create_directory(job.shared_memory_directory);
    events_.Tell(fmt::format("epoch {}", epoch_));
    serving_ = false;
    job_ = StartChild(MpirunCommand(job));
  }

  /// Returns when the job is over or must be ended.
  JobEnd WatchJob() {
    JobEnd end;
    auto deadline = Clock::time_point::max();
    while (true) {
      const Event event = events_.Next(deadline);
      if (std::holds_alternative<TimedOut>(event)) return end;
      if (std::holds_alternative<StopAsked>(event)) {
        end.reason = "the server was stopped";
        if (stopping_ || !serving_ || job_ == 0) {
          stopping_ = true;
          return end;
        }
        stopping_ = true;
        TellDrain();
        deadline = Clock::now() + kDrainPatience;
      } else if (const auto* ended = std::get_if<ChildEnded>(&event)) {
        if (ended->process == coordinator_) {
          const bool drained = stopping_ && ended->status == 0;
          end.status = drained ? EXIT_SUCCESS : CoordinatorEnded(*ended);
          coordinator_ = 0;
          return end;
        }
        if (ended->process != job_) continue;
        job_ = 0;
        if (stopping_) return end;
        end.reason = "mpirun ended with " + EndText(ended->status);
        end.job_status = StatusFor(ended->status);
        deadline = Clock::now() + kNamePatience;
      } else {
        const auto& line = std::get<CoordinatorLine>(event);
        if (const auto* serving = std::get_if<Serving>(&line)) {
          if (serving->epoch == epoch_) Announce();
        } else if (const auto* failed = std::get_if<EpochFailed>(&line)) {
          if (failed->epoch != epoch_) continue;
          end.reason = failed->reason;
          if (job_ != 0) AwaitJobStatus(end);
          return end;
        }
      }
    }
  }

  /// After a failure mpirun is about to end by itself, and its status says what the ranks' own was.
  void AwaitJobStatus(JobEnd& end) {
    const auto deadline = Clock::now() + kNamePatience;
    while (true) {
      const Event event = events_.Next(deadline);
      if (std::holds_alternative<TimedOut>(event)) return;
      if (std::holds_alternative<StopAsked>(event)) stopping_ = true;
      const auto* ended = std::get_if<ChildEnded>(&event);
      if (ended == nullptr) continue;
      if (ended->process == coordinator_) {
        end.status = CoordinatorEnded(*ended);
        return;
      }
      if (ended->process == job_) {
        job_ = 0;
        end.job_status = StatusFor(ended->status);
        return;
      }
    }
  }

  void Announce() {
    serving_ = true;
    if (announced_) {
      spdlog::info("epoch {} serves at {}", epoch_, address_);
      return;
    }
    announced_ = true;
    fmt::print("jubal ready at {}\n", address_);
    std::fflush(stdout);
  }

  /// Ends what is left of the job and waits until it is gone, memory included.
  void EndJob() {
    if (job_ != 0) {
      kill(job_, SIGTERM);
      AwaitEnd({coordinator_}, kEndPatience);
    }
    for (const pid_t process : Descendants()) {
      if (process != coordinator_) kill(process, SIGKILL);
    }
    AwaitEnd({coordinator_}, kKillPatience);
    job_ = 0;
    std::error_code ignored;
    const std::string name = fmt::format("epoch-{}", epoch_);
    fs::remove_all(sockets_.path() / name, ignored);
    fs::remove_all(shared_memory_.path() / name, ignored);
  }

  /// Waits until no process descends from this one but those in `except`.
  void AwaitEnd(const std::vector<pid_t>& except, Clock::duration patience) {
    const auto deadline = Clock::now() + patience;
    while (Clock::now() < deadline) {
      events_.Reap();
      const std::vector<pid_t> left = Descendants();
      const bool gone = std::all_of(left.begin(), left.end(), [&](pid_t process) {
        return std::find(except.begin(), except.end(), process) != except.end();
      });
      if (gone) return;
      constexpr int kLookEveryMs = 5;
      poll(nullptr, 0, kLookEveryMs);
    }
  }

  /// Waits before the next job. Returns an exit status if the coordinator is over.
  std::optional<int> Pause(std::chrono::seconds wait) {
    const auto deadline = Clock::now() + wait;
    while (!stopping_) {
      const Event event = events_.Next(deadline);
      if (std::holds_alternative<TimedOut>(event)) break;
      if (std::holds_alternative<StopAsked>(event)) stopping_ = true;
      const auto* ended = std::get_if<ChildEnded>(&event);
      if (ended != nullptr && ended->process == coordinator_) return CoordinatorEnded(*ended);
    }
    return std::nullopt;
  }

  void TellDrain() {
    if (!std::exchange(told_drain_, true)) events_.Tell("drain");
  }

  /// The job is gone and the server is to end: lets the coordinator answer its clients.
  int Drain() {
    TellDrain();
    const auto deadline = Clock::now() + kEndPatience;
    while (true) {
      const Event event = events_.Next(deadline);
      if (std::holds_alternative<TimedOut>(event) || std::holds_alternative<StopAsked>(event)) {
        return EXIT_SUCCESS;
      }
      const auto* ended = std::get_if<ChildEnded>(&event);
      if (ended != nullptr && ended->process == coordinator_) {
        coordinator_ = 0;
        return EXIT_SUCCESS;
      }
    }
  }

  const Options& options_;
  EventSource events_;  // first: from here on no signal ends this process before it has cleaned up
  const fs::path program_;
  const PrivateDirectory sockets_;
  const PrivateDirectory shared_memory_;
  std::optional<std::string> token_;
  pid_t coordinator_ = 0;
  pid_t job_ = 0;  // mpirun
  std::uint32_t epoch_ = 0;
  std::string control_;
  std::string address_;
  bool serving_ = false;    // this epoch
  bool announced_ = false;  // some epoch has served
  bool stopping_ = false;
  bool told_drain_ = false;
};

std::optional<std::uint32_t> TakeEpoch(std::string_view& text) {
  std::uint32_t epoch = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, epoch);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
  if (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  return epoch;
}

}  // namespace

std::optional<CoordinatorLine> ParseCoordinatorLine(std::string_view line) {
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  const std::string_view word = line.substr(0, space);
  std::string_view rest = line.substr(space + 1);
  if (rest.empty()) return std::nullopt;
  if (word == "control") return ControlAt{std::string(rest)};
  if (word == "listening") return ListeningAt{std::string(rest)};
  if (word != "serving" && word != "epoch-failed") return std::nullopt;
  const std::optional<std::uint32_t> epoch = TakeEpoch(rest);
  if (!epoch) return std::nullopt;
  if (word == "epoch-failed") return EpochFailed{*epoch, std::string(rest)};
  if (!rest.empty()) return std::nullopt;
  return Serving{*epoch};
}

int Supervise(const Options& options) { return Supervisor(options).Run(); }

}  // namespace jubal

#include "rpc/rank_link.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/error.h"
#include "rpc/socket.h"

namespace jubal {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kMaxQueuedBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxEventsPerFrame = 4096;
constexpr milliseconds kFlushTime{5000};
constexpr milliseconds kCloseTime{1000};

UniqueFd ConnectWithRetries(const RankLinkOptions& options) {
  const auto deadline = steady_clock::now() + options.connect_timeout;
  milliseconds pause{5};
  for (;;) {
    UniqueFd fd = ConnectTo(options.address, std::max(options.connect_timeout, milliseconds{1}));
    if (fd) return fd;
    const int error = errno;
    if (steady_clock::now() + pause >= deadline) {
      throw UserError(ExitStatus::kUnavailable,
                      fmt::format("the coordinator does not answer at {}: {}", options.address,
                                  std::strerror(error)));
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, milliseconds{500});
  }
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

// A guess that is never far too low: what one event takes in the queue and on the wire.
std::size_t SizeOf(const GenerationEvent& event) {
  return sizeof(event) + event.prompt_logprobs.size() * sizeof(float);
}

bool SendAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

}  // namespace

class RankLink::Connection {
 public:
  Connection(const RankLinkOptions& options, RankLinkCallbacks callbacks)
      : options_(options), callbacks_(std::move(callbacks)), fd_(ConnectWithRetries(options)) {
    Enqueue(
        HelloFrame{
            .token = options.token, .ranks = options.ranks, .pid = getpid(), .host = HostName()},
        options.token.size());
    writer_ = std::thread([this] { WriteLoop(); });
    reader_ = std::thread([this] { ReadLoop(); });
  }

  ~Connection() {
    {
      std::unique_lock lock(mutex_);
      closing_ = true;
      changed_.notify_all();
      changed_.wait_for(lock, kFlushTime, [this] { return lost_ || flushed_; });
      // Half a close first: closing with frames unread would take back what is under way.
      shutdown(fd_.get(), SHUT_WR);
      changed_.wait_for(lock, kCloseTime, [this] { return lost_; });
    }
    shutdown(fd_.get(), SHUT_RDWR);  // wakes both threads
    writer_.join();
    reader_.join();
  }

  void Enqueue(FrameBody body, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!Reserve(bytes)) return;
    queue_.push_back(std::move(body));
    changed_.notify_all();
  }

  void EnqueueEvents(std::span<const GenerationEvent> events) {
    const std::lock_guard lock(mutex_);
    for (const GenerationEvent& event : events) {
      if (!Reserve(SizeOf(event))) return;
      auto* last = queue_.empty() ? nullptr : std::get_if<EventsFrame>(&queue_.back());
      if (last == nullptr || last->events.size() == kMaxEventsPerFrame) {
        last = &std::get<EventsFrame>(queue_.emplace_back(EventsFrame{}));
      }
      last->events.push_back(event);
    }
    changed_.notify_all();
  }

 private:
  // With mutex_ held. False: the connection is or is now being lost.
  bool Reserve(std::size_t bytes) {
    if (lost_ || overflowed_) return false;
    queued_bytes_ += bytes;
    if (queued_bytes_ <= kMaxQueuedBytes) return true;
    overflowed_ = true;
    shutdown(fd_.get(), SHUT_RDWR);  // the reader reports it
    return false;
  }

  void WriteLoop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return lost_ || closing_ || !queue_.empty(); });
      if (lost_) return;
      if (queue_.empty()) {
        flushed_ = true;
        changed_.notify_all();
        return;
      }
      std::deque<FrameBody> bodies = std::exchange(queue_, {});
      const std::size_t bytes = queued_bytes_;  // they still count while they are being sent
      lock.unlock();
      bool sent = true;
      for (FrameBody& body : bodies) {
        sent = sent &&
               SendAll(fd_.get(), EncodeFrame({options_.epoch, options_.rank, std::move(body)}));
      }
      lock.lock();
      queued_bytes_ -= bytes;
      if (!sent) {
        shutdown(fd_.get(), SHUT_RDWR);  // the reader reports it
        return;
      }
    }
  }

  void ReadLoop() {
    const std::string reason = ReadUntilLost();
    bool report = false;
    {
      const std::lock_guard lock(mutex_);
      lost_ = true;
      report = !closing_;
      changed_.notify_all();
    }
    if (report) callbacks_.on_lost(reason);
  }

  // Returns why it ended.
  std::string ReadUntilLost() {
    FrameReader frames(kMaxFramePayload);
    std::vector<std::byte> buffer(std::size_t{64} << 10);
    try {
      for (;;) {
        const ssize_t size = recv(fd_.get(), buffer.data(), buffer.size(), 0);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return fmt::format("the coordinator is lost: {}", std::strerror(errno));
        if (size == 0) break;
        frames.Append(std::span(buffer).first(static_cast<std::size_t>(size)));
        while (auto frame = frames.Next()) {
          if (auto reason = Handle(std::move(*frame))) return *reason;
        }
      }
    } catch (const FrameError& error) {
      return fmt::format("the coordinator sent a bad frame: {}", error.what());
    }
    const std::lock_guard lock(mutex_);
    return overflowed_ ? "the coordinator does not read what this rank sends"
                       : "the coordinator closed the connection";
  }

  // Returns why the connection ends with this frame, if it does.
  std::optional<std::string> Handle(Frame frame) {
    if (frame.epoch != options_.epoch) return "the coordinator sent a frame of another epoch";
    if (auto* submit = std::get_if<SubmitFrame>(&frame.body)) {
      callbacks_.on_submit(submit->id, std::move(submit->request));
    } else if (const auto* cancel = std::get_if<CancelFrame>(&frame.body)) {
      callbacks_.on_cancel(cancel->id);
    } else if (std::holds_alternative<StopFrame>(frame.body)) {
      callbacks_.on_stop();
    } else if (const auto* fatal = std::get_if<FatalFrame>(&frame.body)) {
      return fmt::format("the coordinator does not want this rank: {}", fatal->message);
    } else {
      return "the coordinator sent a frame that is not for ranks";
    }
    return std::nullopt;
  }

  const RankLinkOptions options_;
  const RankLinkCallbacks callbacks_;
  const UniqueFd fd_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FrameBody> queue_;
  std::size_t queued_bytes_ = 0;
  bool overflowed_ = false;
  bool closing_ = false;  // the destructor runs
  bool flushed_ = false;  // … and everything is sent
  bool lost_ = false;

  std::thread writer_;
  std::thread reader_;
};

RankLink::RankLink(const RankLinkOptions& options, RankLinkCallbacks callbacks)
    : connection_(std::make_unique<Connection>(options, std::move(callbacks))) {}

RankLink::~RankLink() = default;

void RankLink::SendReady(const ServingInfo& info) {
  connection_->Enqueue(ReadyFrame{info}, info.plan.size());
}

void RankLink::SendEvents(std::span<const GenerationEvent> events) {
  connection_->EnqueueEvents(events);
}

void RankLink::SendRejected(RequestId id, const Rejection& rejection) {
  connection_->Enqueue(RejectedFrame{id, rejection}, sizeof(FrameBody) + rejection.message.size());
}

void RankLink::SendFatal(const std::string& message) {
  connection_->Enqueue(FatalFrame{message}, message.size());
}

}  // namespace jubal

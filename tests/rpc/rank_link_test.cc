#include "rpc/rank_link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/error.h"
#include "rpc/socket.h"

namespace jubal {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// The coordinator's side of one connection, in blocking calls.
class FakeCoordinator {
 public:
  explicit FakeCoordinator(const std::string& address)
      : listener_(ListenOn(address)), address_(ListeningAddress(listener_, address)) {}

  const std::string& address() const { return address_; }

  void Accept() {
    while (!peer_) {
      peer_ = UniqueFd(accept(listener_.get(), nullptr, nullptr));
      if (!peer_) std::this_thread::sleep_for(milliseconds(1));
    }
  }

  // The next frame; nothing at the end of the stream.
  std::optional<Frame> Receive() {
    for (;;) {
      if (auto frame = frames_.Next()) return frame;
      std::array<std::byte, 4096> buffer;
      const ssize_t size = recv(peer_.get(), buffer.data(), buffer.size(), 0);
      if (size <= 0) return std::nullopt;
      frames_.Append(std::span(buffer).first(static_cast<std::size_t>(size)));
    }
  }

  void Send(FrameBody body, std::uint32_t epoch = 1) {
    SendBytes(EncodeFrame({epoch, 0, std::move(body)}));
  }

  void SendBytes(const std::string& bytes) {
    ASSERT_EQ(send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }

  void Close() { peer_ = UniqueFd(); }

 private:
  const UniqueFd listener_;
  const std::string address_;
  UniqueFd peer_;
  FrameReader frames_{kMaxFramePayload};
};

// What a rank heard, in words.
class Heard {
 public:
  RankLinkCallbacks Callbacks() {
    return {
        .on_submit =
            [this](RequestId id, GenerationRequest request) {
              Add("submit " + std::to_string(id) + " of " + std::to_string(request.prompt.size()));
            },
        .on_cancel = [this](RequestId id) { Add("cancel " + std::to_string(id)); },
        .on_stop = [this] { Add("stop"); },
        .on_lost = [this](const std::string& reason) { Add("lost: " + reason); }};
  }

  std::string Wait(std::size_t index) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, seconds(5), [&] { return lines_.size() > index; }))
      return "(none)";
    return lines_[index];
  }

  std::size_t size() {
    const std::lock_guard lock(mutex_);
    return lines_.size();
  }

 private:
  void Add(std::string line) {
    const std::lock_guard lock(mutex_);
    lines_.push_back(std::move(line));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
};

std::string SocketPath() {
  return (std::filesystem::path(testing::TempDir()) / ("rank_link." + std::to_string(getpid())))
      .string();
}

RankLinkOptions OptionsFor(const std::string& address) {
  return {.address = address, .token = "secret", .epoch = 1, .rank = 0, .ranks = 2};
}

GenerationEvent Token(RequestId id, TokenId token) { return {id, {}, token, 0.0f, std::nullopt}; }

class RankLinkTest : public testing::TestWithParam<std::string> {};

// If this fails, ranks cannot talk with the coordinator: on the same host (a path) or another one.
TEST_P(RankLinkTest, CarriesEverythingBothWays) {
  FakeCoordinator coordinator(GetParam());
  Heard heard;
  RankLink link(OptionsFor(coordinator.address()), heard.Callbacks());
  coordinator.Accept();
  const auto hello = coordinator.Receive();
  ASSERT_TRUE(hello && std::holds_alternative<HelloFrame>(hello->body));
  EXPECT_EQ(hello->epoch, 1u);
  EXPECT_EQ(std::get<HelloFrame>(hello->body).token, "secret");
  EXPECT_EQ(std::get<HelloFrame>(hello->body).ranks, 2u);
  EXPECT_EQ(std::get<HelloFrame>(hello->body).pid, getpid());

  link.SendReady({.model = "m", .family = "f", .limits = {}, .eos_ids = {}, .plan = "p"});
  const auto ready = coordinator.Receive();
  ASSERT_TRUE(ready && std::holds_alternative<ReadyFrame>(ready->body));

  coordinator.Send(SubmitFrame{4, {{1, 2, 3}, {}, 0, {}, false}});
  coordinator.Send(CancelFrame{.id = 4});
  coordinator.Send(StopFrame{});
  EXPECT_EQ(heard.Wait(0), "submit 4 of 3");
  EXPECT_EQ(heard.Wait(1), "cancel 4");
  EXPECT_EQ(heard.Wait(2), "stop");

  link.SendEvents(std::vector{Token(4, 7)});
  link.SendRejected(5, {Rejection::Reason::kQueueFull, "", "full"});
  link.SendFatal("no memory");
  EXPECT_TRUE(std::holds_alternative<EventsFrame>(coordinator.Receive()->body));
  EXPECT_TRUE(std::holds_alternative<RejectedFrame>(coordinator.Receive()->body));
  EXPECT_TRUE(std::holds_alternative<FatalFrame>(coordinator.Receive()->body));
}

INSTANTIATE_TEST_SUITE_P(Addresses, RankLinkTest, testing::Values("127.0.0.1:0", SocketPath()));

// If this fails, ranks of a coordinator that died keep their memory and block the next epoch.
TEST(RankLinkLossTest, ALostCoordinatorIsReportedOnce) {
  FakeCoordinator coordinator("127.0.0.1:0");
  Heard heard;
  RankLink link(OptionsFor(coordinator.address()), heard.Callbacks());
  coordinator.Accept();
  coordinator.Receive();
  coordinator.Close();
  EXPECT_EQ(heard.Wait(0), "lost: the coordinator closed the connection");
  link.SendEvents(std::vector{Token(1, 1)});
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(heard.size(), 1u);
}

// If this fails, a rank acts on bytes that nobody meant, or for another life of the job.
TEST(RankLinkLossTest, BadAndForeignFramesEndTheConnection) {
  for (const bool foreign : {false, true}) {
    FakeCoordinator coordinator("127.0.0.1:0");
    Heard heard;
    RankLink link(OptionsFor(coordinator.address()), heard.Callbacks());
    coordinator.Accept();
    if (foreign) {
      coordinator.Send(StopFrame{}, 2);
    } else {
      coordinator.SendBytes(std::string(64, 'x'));
    }
    EXPECT_EQ(heard.Wait(0).substr(0, 5), "lost:");
    EXPECT_EQ(heard.size(), 1u);
  }
}

// If this fails, a coordinator that hangs stops the engine, or fills the leader's memory.
TEST(RankLinkLossTest, ACoordinatorThatDoesNotReadNeverBlocks) {
  FakeCoordinator coordinator("127.0.0.1:0");
  Heard heard;
  RankLink link(OptionsFor(coordinator.address()), heard.Callbacks());
  coordinator.Accept();
  GenerationEvent large = Token(1, 1);
  large.prompt_logprobs.assign(250'000, -1.0f);  // 1 MB
  auto slowest = steady_clock::duration::zero();
  for (int i = 0; i < 100; ++i) {
    const auto start = steady_clock::now();
    link.SendEvents(std::span(&large, 1));
    slowest = std::max(slowest, steady_clock::now() - start);
  }
  EXPECT_LT(slowest, milliseconds(500));
  EXPECT_EQ(heard.Wait(0), "lost: the coordinator does not read what this rank sends");
}

// If this fails, a leader that ends after a drain takes its last tokens with it.
TEST(RankLinkLossTest, TheDestructorSendsWhatIsQueued) {
  FakeCoordinator coordinator("127.0.0.1:0");
  Heard heard;
  constexpr int kEvents = 100'000;
  auto link = std::make_unique<RankLink>(OptionsFor(coordinator.address()), heard.Callbacks());
  coordinator.Accept();
  for (int i = 0; i < kEvents; ++i) link->SendEvents(std::vector{Token(1, i)});
  std::thread closer([&] { link.reset(); });
  int received = 0;
  int frames = 0;
  while (const auto frame = coordinator.Receive()) {
    const auto* events = std::get_if<EventsFrame>(&frame->body);
    if (events == nullptr) continue;
    ++frames;
    for (const GenerationEvent& event : events->events) EXPECT_EQ(event.token, received++);
  }
  coordinator.Close();
  closer.join();
  EXPECT_EQ(received, kEvents);
  EXPECT_LT(frames, kEvents);  // they travel together
  EXPECT_EQ(heard.size(), 0u);
}

// If this fails, ranks that start before the coordinator listens give up, or wait for ever.
TEST(RankLinkLossTest, ConnectingIsTriedAgainForALimitedTime) {
  const std::string path = SocketPath();
  RankLinkOptions options = OptionsFor(path);
  options.connect_timeout = milliseconds(100);
  try {
    Heard heard;
    RankLink link(options, heard.Callbacks());
    ADD_FAILURE() << "nobody listens";
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUnavailable);
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
  }
  options.connect_timeout = seconds(5);
  std::unique_ptr<FakeCoordinator> coordinator;
  std::thread late([&] {
    std::this_thread::sleep_for(milliseconds(100));
    coordinator = std::make_unique<FakeCoordinator>(path);
  });
  Heard heard;
  const RankLink link(options, heard.Callbacks());
  late.join();
  coordinator->Accept();
  EXPECT_TRUE(coordinator->Receive());
  coordinator->Close();
}

}  // namespace
}  // namespace jubal

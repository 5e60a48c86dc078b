#include "rpc/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/rpc/coordinator_fixture.h"

namespace jubal {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

ExitStatus StatusOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()), "");
    return error.status();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ExitStatus::kUsage;
}

// If this fails, `jubal chat` shows another text than the model's, or cannot describe it.
TEST(ClientTest, StreamsAGeneration) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  Client client = Client::Connect(coordinator.address(), seconds(5));
  const ModelInfo info = client.GetModelInfo();
  EXPECT_EQ(info.name, "toy");
  EXPECT_EQ(info.context_length, kContext);
  EXPECT_EQ(info.eos_ids, (std::vector<TokenId>{2}));
  EXPECT_TRUE(info.has_tokenizer);

  ClientRequest request;
  request.prompt = "abc";
  request.seed = 3;
  request.max_tokens = 50;
  request.temperature = 0.5f;
  std::string text;
  std::size_t tokens = 0;
  const std::atomic<bool> cancel = false;
  const ClientResult result = client.Generate(
      request,
      [&](const ClientDelta& delta) {
        text += delta.text;
        tokens += delta.token_ids.size();
      },
      cancel);
  EXPECT_EQ(text, ToyText(3, 50));
  EXPECT_EQ(tokens, 50u);
  EXPECT_EQ(result.finish, FinishReason::kLength);
  EXPECT_EQ(result.prompt_tokens, 3);
  EXPECT_EQ(result.completion_tokens, 50);
  EXPECT_EQ(result.seed, 3u);
  EXPECT_EQ(ranks[0]->last_request().sampling.temperature, 0.5f);
}

// If this fails, Ctrl-C in a chat waits for the whole answer, or the server goes on with it.
TEST(ClientTest, CancelEndsTheGeneration) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  Client client = Client::Connect(coordinator.address(), seconds(5));
  ClientRequest request;
  request.prompt = std::vector<TokenId>{1, 2};
  request.max_tokens = 100'000;
  std::atomic<bool> cancel = false;
  steady_clock::time_point cancelled;
  const ClientResult result = client.Generate(
      request,
      [&](const ClientDelta&) {
        if (!cancel) cancelled = steady_clock::now();
        cancel = true;
      },
      cancel);
  EXPECT_LT(steady_clock::now() - cancelled, milliseconds(500));
  EXPECT_EQ(result.finish, std::nullopt);
  EXPECT_TRUE(ranks[0]->WaitForCancels(1));
}

// If this fails, users do not learn what is wrong, or scripts get another exit status.
TEST(ClientTest, ErrorsTellWhoIsWrong) {
  EXPECT_EQ(StatusOf([] { Client::Connect("127.0.0.1:1", milliseconds(200)); }),
            ExitStatus::kUnavailable);
  CoordinatorProcess coordinator;
  Client client = Client::Connect(coordinator.address(), seconds(5));
  EXPECT_EQ(StatusOf([&] { client.GetModelInfo(); }), ExitStatus::kUnavailable);
  const auto ranks = coordinator.StartEpoch(1);
  ClientRequest request;
  request.prompt = "abc";
  request.temperature = -1.0f;
  const std::atomic<bool> cancel = false;
  EXPECT_EQ(StatusOf([&] {
              client.Generate(
                  request, [](const ClientDelta&) {}, cancel);
            }),
            ExitStatus::kUsage);
}

}  // namespace
}  // namespace jubal

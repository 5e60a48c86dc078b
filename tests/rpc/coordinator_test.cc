#include "rpc/coordinator.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/client_unary_call.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "jubal/v1/generation.grpc.pb.h"
#include "kernels/error.h"
#include "tests/rpc/coordinator_fixture.h"

namespace jubal {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using Stub = v1::GenerationService::Stub;

std::shared_ptr<grpc::Channel> ChannelTo(const CoordinatorProcess& coordinator) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(coordinator.address(), grpc::InsecureChannelCredentials(),
                                   arguments);
}

std::unique_ptr<Stub> StubOf(const CoordinatorProcess& coordinator) {
  return v1::GenerationService::NewStub(ChannelTo(coordinator));
}

v1::GenerateRequest Request(std::uint64_t seed, std::int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text("abc");
  request.set_seed(seed);
  request.set_max_tokens(max_tokens);
  request.set_logprobs(true);
  return request;
}

grpc::Status Generate(Stub& stub, const v1::GenerateRequest& request,
                      v1::GenerateResponse* response) {
  grpc::ClientContext context;
  return stub.Generate(&context, request, response);
}

grpc::Status Generate(Stub& stub, const v1::GenerateRequest& request) {
  v1::GenerateResponse response;
  return Generate(stub, request, &response);
}

// Everything a stream says, joined; checks what each message must hold.
struct Streamed {
  v1::GenerateResponse whole;
  int messages = 0;
  grpc::Status status;
};

Streamed ReadAll(grpc::ClientReader<v1::GenerateStreamResponse>& reader) {
  Streamed streamed;
  v1::GenerateResponse& whole = streamed.whole;
  v1::GenerateStreamResponse message;
  while (reader.Read(&message)) {
    EXPECT_EQ(message.has_prompt_info(), streamed.messages == 0);
    if (message.has_prompt_info()) whole.set_seed(message.prompt_info().seed());
    EXPECT_EQ(message.first_index(), whole.token_ids_size());
    EXPECT_EQ(whole.finish_reason(), v1::FINISH_REASON_UNSPECIFIED) << "it was the last";
    whole.mutable_text()->append(message.text());
    whole.mutable_token_ids()->MergeFrom(message.token_ids());
    whole.mutable_logprobs()->MergeFrom(message.logprobs());
    whole.set_finish_reason(message.finish_reason());
    if (message.has_usage()) *whole.mutable_usage() = message.usage();
    ++streamed.messages;
  }
  streamed.status = reader.Finish();
  return streamed;
}

// How a stream ends of which the test has read the beginning.
grpc::Status EndOf(grpc::ClientReader<v1::GenerateStreamResponse>& reader) {
  v1::GenerateStreamResponse message;
  while (reader.Read(&message)) {
  }
  return reader.Finish();
}

Streamed GenerateStream(Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.GenerateStream(&context, request);
  return ReadAll(*reader);
}

template <class Detail>
std::optional<Detail> DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  Detail detail;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  if (details.details_size() != 1 || !details.details(0).UnpackTo(&detail)) return std::nullopt;
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  return detail;
}

void ExpectRetryLater(const grpc::Status& status, grpc::StatusCode code, const std::string& part) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message().find(part), std::string::npos) << status.error_message();
  const auto detail = DetailOf<google::rpc::RetryInfo>(status);
  ASSERT_TRUE(detail);
  EXPECT_GT(detail->retry_delay().seconds(), 0);
}

// grpc.health.v1: its messages have one field, number 1, as the wrapper messages have.
using HealthRequest = google::protobuf::StringValue;
using HealthResponse = google::protobuf::Int32Value;
constexpr int kServing = 1;
constexpr int kNotServing = 2;

int CheckHealth(grpc::Channel& channel, const std::string& service) {
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  grpc::ClientContext context;
  HealthRequest request;
  request.set_value(service);
  HealthResponse response;
  const grpc::Status status = grpc::internal::BlockingUnaryCall<HealthRequest, HealthResponse>(
      &channel, method, &context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.value();
}

// If this fails, streaming clients get another answer than those that wait for the whole, or not
// the tokens and probabilities that the model gave.
TEST(CoordinatorTest, StreamAndUnaryGiveTheEnginesTokens) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  const auto stub = StubOf(coordinator);
  v1::GenerateRequest request = Request(5, 100);
  for (const bool ids : {false, true}) {
    if (ids) {
      request.mutable_token_ids()->add_ids(9);
      request.mutable_token_ids()->add_ids(10);
    }
    v1::GenerateResponse unary;
    const grpc::Status status = Generate(*stub, request, &unary);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(unary.text(), ToyText(5, 100));
    ASSERT_EQ(unary.token_ids_size(), 100);
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(unary.token_ids(i), static_cast<std::uint32_t>(ToyToken(5, i)));
      EXPECT_EQ(unary.logprobs(i), ToyLogprob(ToyToken(5, i), i));
    }
    EXPECT_EQ(unary.finish_reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(unary.usage().prompt_tokens(), ids ? 2 : 3);
    EXPECT_EQ(unary.usage().completion_tokens(), 100);
    EXPECT_EQ(unary.seed(), 5u);

    const Streamed streamed = GenerateStream(*stub, request);
    EXPECT_TRUE(streamed.status.ok());
    EXPECT_GT(streamed.messages, 1);
    EXPECT_EQ(streamed.whole.SerializeAsString(), unary.SerializeAsString());
  }
}

// If this fails, what a request leaves out is not what the documentation says, or what it says does
// not reach the engine.
TEST(CoordinatorTest, FieldsAndDefaultsReachTheEngine) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, microseconds(0));
  const auto stub = StubOf(coordinator);
  v1::GenerateRequest request;
  request.set_text("ab");
  v1::GenerateResponse first;
  ASSERT_TRUE(Generate(*stub, request, &first).ok());
  GenerationRequest got = ranks[0]->last_request();
  EXPECT_EQ(got.prompt, (std::vector<TokenId>{kFirstLetter, kFirstLetter + 1}));
  EXPECT_EQ(got.max_tokens, 256);
  EXPECT_EQ(got.stop_ids, (std::vector<TokenId>{2}));
  EXPECT_EQ(got.sampling.temperature, 1.0f);
  EXPECT_EQ(got.sampling.top_p, 1.0f);
  EXPECT_EQ(got.sampling.seed, first.seed());
  EXPECT_EQ(first.logprobs_size(), 0);
  v1::GenerateResponse second;
  ASSERT_TRUE(Generate(*stub, request, &second).ok());
  EXPECT_NE(first.seed(), second.seed());

  request.set_model("toy");
  request.set_max_tokens(3);
  request.set_temperature(0.5f);
  request.set_top_p(0.25f);
  request.set_top_k(7);
  request.set_min_p(0.125f);
  request.set_presence_penalty(-1.0f);
  request.set_frequency_penalty(1.5f);
  request.set_repetition_penalty(1.25f);
  request.set_seed(0);
  request.set_ignore_eos(true);
  ASSERT_TRUE(Generate(*stub, request).ok());
  got = ranks[0]->last_request();
  EXPECT_EQ(got.max_tokens, 3);
  EXPECT_TRUE(got.stop_ids.empty());
  EXPECT_EQ(got.sampling.temperature, 0.5f);
  EXPECT_EQ(got.sampling.top_p, 0.25f);
  EXPECT_EQ(got.sampling.top_k, 7);
  EXPECT_EQ(got.sampling.min_p, 0.125f);
  EXPECT_EQ(got.sampling.presence_penalty, -1.0f);
  EXPECT_EQ(got.sampling.frequency_penalty, 1.5f);
  EXPECT_EQ(got.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(got.sampling.seed, 0u);
}

// If this fails, an answer runs on after its stop string, or shows it, or keeps the engine busy.
TEST(CoordinatorTest, AStopStringAcrossTokensEndsTheRequest) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  v1::GenerateRequest request = Request(11, 100'000);
  request.add_stop(ToyText(11, 40).substr(36));  // of four tokens
  request.add_stop("#");
  const Streamed streamed = GenerateStream(*stub, request);
  ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  EXPECT_EQ(streamed.whole.text(), ToyText(11, 36));
  EXPECT_EQ(streamed.whole.token_ids_size(), 40);
  EXPECT_EQ(streamed.whole.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(streamed.whole.usage().completion_tokens(), 40);
  EXPECT_TRUE(ranks[0]->WaitForCancels(1));
  EXPECT_TRUE(ranks[0]->WaitForRunning(0));
}

// If this fails, requests whose clients have gone hold KV memory until max_tokens.
TEST(CoordinatorTest, CancelAndDeadlineReachTheEngineAtOnce) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  {
    grpc::ClientContext context;
    const auto reader = stub->GenerateStream(&context, Request(1, 100'000));
    v1::GenerateStreamResponse message;
    ASSERT_TRUE(reader->Read(&message));
    const auto start = steady_clock::now();
    context.TryCancel();
    EXPECT_TRUE(ranks[0]->WaitForCancels(1));
    EXPECT_LT(steady_clock::now() - start, seconds(1));
    EXPECT_EQ(EndOf(*reader).error_code(), grpc::StatusCode::CANCELLED);
  }
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + milliseconds(200));
    v1::GenerateResponse response;
    EXPECT_EQ(stub->Generate(&context, Request(2, 100'000), &response).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_TRUE(ranks[0]->WaitForCancels(2));
  }
  EXPECT_TRUE(ranks[0]->WaitForRunning(0));
  EXPECT_TRUE(Generate(*stub, Request(3, 5)).ok());
}

// If this fails, one client that does not read stops all others, or loses its own tokens.
TEST(CoordinatorTest, ASlowReaderDelaysNobodyAndLosesNothing) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, microseconds(0));
  constexpr int kTokens = 200'000;  // more than the connection's window holds
  const auto slow = StubOf(coordinator);
  grpc::ClientContext context;
  const auto reader = slow->GenerateStream(&context, Request(4, kTokens));
  EXPECT_TRUE(ranks[0]->WaitForRunning(1));

  const auto fast = StubOf(coordinator);
  const Streamed other = GenerateStream(*fast, Request(6, 200));
  EXPECT_TRUE(other.status.ok());
  EXPECT_EQ(other.whole.text(), ToyText(6, 200));
  EXPECT_TRUE(ranks[0]->WaitForRunning(0)) << "the engine waits for the reader";

  const Streamed streamed = ReadAll(*reader);
  EXPECT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  EXPECT_EQ(streamed.whole.token_ids_size(), kTokens);
  EXPECT_EQ(streamed.whole.text(), ToyText(4, kTokens));
  EXPECT_LT(streamed.messages, kTokens / 10) << "tokens travel together";
}

// If this fails, clients of a job that died hang, or nobody learns which rank it was, or the server
// does not come back.
TEST(CoordinatorTest, ALostRankEndsTheEpochAndTheNextOneServes) {
  CoordinatorProcess coordinator([](CoordinatorOptions& options) { options.ranks = 2; });
  auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(1, 100'000));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  ranks[1]->Die();

  const std::string name = "rank 1 (pid " + std::to_string(getpid()) + " on host ";
  const std::string line = coordinator.Line();
  EXPECT_EQ(line.substr(0, 15 + name.size()), "epoch-failed 1 " + name) << line;
  ExpectRetryLater(EndOf(*reader), grpc::StatusCode::UNAVAILABLE, name);
  ExpectRetryLater(Generate(*stub, Request(1, 1)), grpc::StatusCode::UNAVAILABLE, name);

  // The old leader still lives, and draws for requests of the new epoch: nobody may get that.
  coordinator.Tell("epoch-ended 1 mpirun was killed");
  const auto next = coordinator.StartEpoch(2);
  const std::vector<GenerationEvent> stale(10, {2, {}, 3, -1.0f, FinishReason::kStop});
  ranks[0]->link().SendEvents(stale);
  EXPECT_NE(ranks[0]->WaitForLoss(), "(not lost)");
  const Streamed streamed = GenerateStream(*stub, Request(8, 50));
  EXPECT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  EXPECT_EQ(streamed.whole.text(), ToyText(8, 50));
}

// If this fails, the reason that a rank gave before it died is lost.
TEST(CoordinatorTest, ARanksLastWordsAreReported) {
  CoordinatorProcess coordinator;
  auto ranks = coordinator.StartEpoch(1);
  ranks[0]->link().SendFatal("out of KV pages\nsecond line");
  ranks[0]->Die();
  const std::string line = coordinator.Line();
  EXPECT_EQ(line.substr(0, 12), "epoch-failed");
  EXPECT_NE(line.find("ended: out of KV pages second line"), std::string::npos) << line;
}

// If this fails, a job that mpirun could not even start leaves clients waiting for ever.
TEST(CoordinatorTest, AnEpochThatTheSupervisorEndsFreesItsClients) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(1, 100'000));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  coordinator.Tell("epoch-ended 1 mpirun exited with status 1");
  ExpectRetryLater(EndOf(*reader), grpc::StatusCode::UNAVAILABLE, "mpirun exited with status 1");
}

// If this fails, anyone who reaches the control port can pose as a rank, and ranks of a job that is
// over disturb the next one.
TEST(CoordinatorTest, StrangersAndStragglersAreRefused) {
  CoordinatorProcess coordinator([](CoordinatorOptions& options) {
    options.control = "127.0.0.1:0";
    options.ranks = 2;
  });
  coordinator.Tell("epoch 3");
  const auto refusal = [&](const std::function<void(RankLinkOptions&)>& edit) {
    RankLinkOptions options = coordinator.RankOptions(3, 1);
    edit(options);
    FakeRank rank(options, microseconds(0));
    return rank.WaitForLoss();
  };
  const auto has = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refusal([](RankLinkOptions& options) { options.token = "secreT"; }), "token is wrong");
  has(refusal([](RankLinkOptions& options) { options.token = ""; }), "token is wrong");
  has(refusal([](RankLinkOptions& options) { options.epoch = 2; }), "epoch 2 is not starting");
  has(refusal([](RankLinkOptions& options) { options.rank = 2; }), "there are 2 ranks");
  has(refusal([](RankLinkOptions& options) { options.ranks = 3; }), "there are 2 ranks");
  // Of two that say they are the same rank, the coordinator keeps the one it hears first.
  auto one = coordinator.StartRank(3, 1, microseconds(0));
  auto other = coordinator.StartRank(3, 1, microseconds(0));
  while (!one->lost() && !other->lost()) std::this_thread::sleep_for(milliseconds(1));
  auto& refused = one->lost() ? one : other;
  has(refused->WaitForLoss(), "connected already");
  refused.reset();
  const auto leader = coordinator.StartRank(3, 0, microseconds(0));
  EXPECT_EQ(coordinator.Line(), "serving 3");
  EXPECT_TRUE(Generate(*StubOf(coordinator), Request(1, 3)).ok());
}

// If this fails, a rolling restart cuts answers short, or never ends.
TEST(CoordinatorTest, DrainFinishesWhatIsOpenAndRefusesTheRest) {
  CoordinatorProcess coordinator;
  auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(1, 300));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::string text = message.text();
  coordinator.Tell("drain");
  while (CheckHealth(*ChannelTo(coordinator), "") == kServing) {
  }
  ExpectRetryLater(Generate(*stub, Request(2, 1)), grpc::StatusCode::UNAVAILABLE, "ending");
  while (reader->Read(&message)) text += message.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, ToyText(1, 300));
  EXPECT_TRUE(ranks[0]->WaitForEnd());
  ranks.clear();
  EXPECT_EQ(coordinator.WaitForResult(), 0);
}

// If this fails, an idle coordinator or one whose job cannot start does not end when told to.
TEST(CoordinatorTest, DrainWithoutAJobEndsAtOnce) {
  CoordinatorProcess coordinator;
  coordinator.Tell("epoch 1");
  coordinator.Tell("drain");
  coordinator.Tell("epoch-ended 1 stopped");
  EXPECT_EQ(coordinator.WaitForResult(), 0);
}

// If this fails, coordinators outlive their supervisor and keep the port.
TEST(CoordinatorTest, ALostSupervisorEndsEverything) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(1, 100'000));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const auto start = steady_clock::now();
  coordinator.CloseSupervisor();
  EXPECT_EQ(coordinator.WaitForResult(), 1);
  EXPECT_LT(steady_clock::now() - start, seconds(2));
  EXPECT_FALSE(EndOf(*reader).ok());
}

// If this fails, load balancers send requests to a server that is loading, or keep away from one
// that serves.
TEST(CoordinatorTest, HealthFollowsTheEpoch) {
  CoordinatorProcess coordinator;
  const auto channel = ChannelTo(coordinator);
  const std::string service = "jubal.v1.GenerationService";
  const grpc::internal::RpcMethod watch("/grpc.health.v1.Health/Watch",
                                        grpc::internal::RpcMethod::SERVER_STREAMING);
  grpc::ClientContext context;
  HealthRequest request;
  request.set_value(service);
  const std::unique_ptr<grpc::ClientReader<HealthResponse>> watcher(
      grpc::internal::ClientReaderFactory<HealthResponse>::Create(channel.get(), watch, &context,
                                                                  request));
  HealthResponse response;
  ASSERT_TRUE(watcher->Read(&response));
  EXPECT_EQ(response.value(), kNotServing);
  EXPECT_EQ(CheckHealth(*channel, ""), kNotServing);
  ExpectRetryLater(Generate(*StubOf(coordinator), Request(1, 1)), grpc::StatusCode::UNAVAILABLE,
                   "being loaded");

  auto ranks = coordinator.StartEpoch(1);
  ASSERT_TRUE(watcher->Read(&response));
  EXPECT_EQ(response.value(), kServing);
  EXPECT_EQ(CheckHealth(*channel, ""), kServing);
  EXPECT_EQ(CheckHealth(*channel, service), kServing);

  ranks[0]->Die();
  ASSERT_TRUE(watcher->Read(&response));
  EXPECT_EQ(response.value(), kNotServing);
  EXPECT_EQ(CheckHealth(*channel, ""), kNotServing);
  context.TryCancel();
}

// If this fails, users cannot tell which field of their request is wrong, or the engine gets what
// it cannot compute.
TEST(CoordinatorTest, WrongFieldsAreNamed) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  const auto stub = StubOf(coordinator);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  using Edit = std::function<void(v1::GenerateRequest&)>;
  const std::vector<std::pair<std::string, Edit>> cases = {
      {"prompt", [](auto& r) { r.clear_prompt(); }},
      {"text", [](auto& r) { r.set_text(""); }},
      {"text", [](auto& r) { r.set_text(std::string((8 << 20) + 1, 'a')); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids(); }},
      {"prompt", [](auto& r) { r.mutable_token_ids()->add_ids(kVocabulary); }},
      {"prompt", [](auto& r) { r.mutable_token_ids()->add_ids(0xffffffff); }},
      {"prompt", [](auto& r) { r.set_text(std::string(kContext + 1, 'a')); }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(0); }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(-1); }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(kContext); }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(std::numeric_limits<std::int64_t>::max()); }},
      {"temperature", [](auto& r) { r.set_temperature(kNan); }},
      {"temperature", [](auto& r) { r.set_temperature(kInfinity); }},
      {"temperature", [](auto& r) { r.set_temperature(-0.1f); }},
      {"top_p", [](auto& r) { r.set_top_p(0.0f); }},
      {"top_p", [](auto& r) { r.set_top_p(1.5f); }},
      {"top_k", [](auto& r) { r.set_top_k(-1); }},
      {"min_p", [](auto& r) { r.set_min_p(kNan); }},
      {"presence_penalty", [](auto& r) { r.set_presence_penalty(2.5f); }},
      {"frequency_penalty", [](auto& r) { r.set_frequency_penalty(-2.5f); }},
      {"repetition_penalty", [](auto& r) { r.set_repetition_penalty(0.0f); }},
      {"stop", [](auto& r) { r.add_stop(""); }},
      {"stop", [](auto& r) { r.add_stop(std::string(257, 'x')); }},
      {"stop",
       [](auto& r) {
         for (int i = 0; i < 9; ++i) r.add_stop("x");
       }},
  };
  for (const auto& [field, edit] : cases) {
    v1::GenerateRequest request = Request(1, 1);
    edit(request);
    for (const grpc::Status& status :
         {Generate(*stub, request), GenerateStream(*stub, request).status}) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
      const auto detail = DetailOf<google::rpc::BadRequest>(status);
      ASSERT_TRUE(detail) << field;
      ASSERT_EQ(detail->field_violations_size(), 1);
      EXPECT_EQ(detail->field_violations(0).field(), field) << status.error_message();
      EXPECT_NE(detail->field_violations(0).description(), "");
    }
  }
  v1::GenerateRequest request = Request(1, 1);
  request.set_model("another");
  EXPECT_EQ(Generate(*stub, request).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Generate(*stub, Request(1, 1)).ok());
}

// gRPC itself would say UNIMPLEMENTED and nothing else, as if the server had no such method.
TEST(CoordinatorTest, ARequestThatCannotBeParsedIsRefusedWithTheReason) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  google::protobuf::BytesValue request;
  request.set_value("\xff");  // field 1: the model's name
  const auto call = [&](const char* name) {
    const grpc::internal::RpcMethod method(name, grpc::internal::RpcMethod::NORMAL_RPC);
    grpc::ClientContext context;
    v1::GenerateResponse response;
    return grpc::internal::BlockingUnaryCall<google::protobuf::BytesValue, v1::GenerateResponse>(
        ChannelTo(coordinator).get(), method, &context, request, &response);
  };
  for (const char* const name :
       {"/jubal.v1.GenerationService/Generate", "/jubal.v1.GenerationService/Tokenize"}) {
    const grpc::Status status = call(name);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
    EXPECT_NE(status.error_message().find("UTF-8"), std::string::npos) << status.error_message();
  }
  EXPECT_EQ(call("/jubal.v1.GenerationService/Another").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

// If this fails, a server for token ids alone turns clients away without telling them what to do.
TEST(CoordinatorTest, WithoutATokenizerTextIsRefusedAndIdsAreServed) {
  CoordinatorProcess coordinator(
      [](CoordinatorOptions& options) { options.tokenizer = std::nullopt; });
  const auto ranks = coordinator.StartEpoch(1);
  const auto stub = StubOf(coordinator);
  v1::GenerateRequest request = Request(7, 20);
  const grpc::Status status = Generate(*stub, request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(status.error_message().find("token_ids"), std::string::npos);
  request.mutable_token_ids()->add_ids(1);
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(*stub, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 20);
  EXPECT_EQ(response.text(), "");
  request.add_stop("x");
  EXPECT_EQ(Generate(*stub, request).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext context;
  v1::DetokenizeResponse text;
  EXPECT_EQ(stub->Detokenize(&context, {}, &text).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

// If this fails, clients cannot size or read their own prompts, or see what they talk to.
TEST(CoordinatorTest, TokenizeDetokenizeAndModelInfo) {
  CoordinatorProcess coordinator(
      [](CoordinatorOptions& options) { options.model_name = "my-toy"; });
  const auto stub = StubOf(coordinator);
  v1::TokenizeRequest text;
  text.set_model("my-toy");
  text.set_text("hello");
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;  // no epoch is needed for it
    ASSERT_TRUE(stub->Tokenize(&context, text, &tokens).ok());
  }
  ASSERT_EQ(tokens.token_ids_size(), 5);
  EXPECT_EQ(tokens.token_ids(0), static_cast<std::uint32_t>(kFirstLetter + 'h' - 'a'));
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  back.add_token_ids(100'000);  // a row that the tokenizer has no piece for
  v1::DetokenizeResponse again;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Detokenize(&context, back, &again).ok());
    EXPECT_EQ(again.text(), "hello");
  }
  {
    grpc::ClientContext context;
    back.add_token_ids(0x80000000);
    EXPECT_EQ(stub->Detokenize(&context, back, &again).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  v1::GetModelInfoResponse info;
  {
    grpc::ClientContext context;
    EXPECT_EQ(stub->GetModelInfo(&context, {}, &info).error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  const auto ranks = coordinator.StartEpoch(1);
  grpc::ClientContext context;
  ASSERT_TRUE(stub->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.name(), "my-toy");
  EXPECT_EQ(info.family(), "toy-moe");
  EXPECT_EQ(info.vocabulary_size(), kVocabulary);
  EXPECT_EQ(info.context_length(), kContext);
  ASSERT_EQ(info.eos_token_ids_size(), 1);
  EXPECT_EQ(info.eos_token_ids(0), 2u);
  EXPECT_TRUE(info.has_tokenizer());
  EXPECT_EQ(info.plan(), "one rank does nothing");
  EXPECT_EQ(info.weight_bytes(), 12345);
}

// If this fails, an overloaded server hides that it is, or takes more than it can hold.
TEST(CoordinatorTest, TooMuchIsRefusedWithATimeToRetry) {
  CoordinatorProcess coordinator(
      [](CoordinatorOptions& options) { options.max_open_requests = 1; });
  const auto ranks = coordinator.StartEpoch(1, milliseconds(1));
  const auto stub = StubOf(coordinator);
  {
    grpc::ClientContext context;
    const auto reader = stub->GenerateStream(&context, Request(1, 100'000));
    EXPECT_TRUE(ranks[0]->WaitForRunning(1));
    ExpectRetryLater(Generate(*stub, Request(1, 1)), grpc::StatusCode::RESOURCE_EXHAUSTED, "open");
    context.TryCancel();
    EndOf(*reader);
  }
  ranks[0]->set_queue_full(true);
  grpc::Status status;
  do {  // until the cancelled request has left
    status = Generate(*stub, Request(1, 1));
  } while (status.error_message().find("open") != std::string::npos);
  ExpectRetryLater(status, grpc::StatusCode::RESOURCE_EXHAUSTED, "The queue is full.");
  ranks[0]->set_queue_full(false);
  do {
    status = Generate(*stub, Request(1, 1));
  } while (status.error_message().find("open") != std::string::npos);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

// If this fails, one absurd message takes the server's memory, or its connection's other calls.
TEST(CoordinatorTest, AHugeMessageIsRefused) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  const auto stub = StubOf(coordinator);
  v1::GenerateRequest request = Request(1, 1);
  request.set_text(std::string(100 << 20, 'a'));
  EXPECT_EQ(Generate(*stub, request).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(*stub, Request(1, 1)).ok());
}

// If this fails, idle connections that send nothing keep everybody else out.
TEST(CoordinatorTest, AThousandSilentConnectionsDoNotMatter) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 1000; ++i) {
    silent.push_back(ConnectTo(coordinator.address(), seconds(5)));
    ASSERT_TRUE(silent.back()) << i;
  }
  const Streamed streamed = GenerateStream(*StubOf(coordinator), Request(1, 20));
  EXPECT_TRUE(streamed.status.ok()) << streamed.status.error_message();
}

// If this fails, running out of descriptors once keeps the server from ever accepting again.
TEST(CoordinatorTest, ConnectionsBeyondTheDescriptorLimitAreRefusedForAWhileOnly) {
  CoordinatorProcess coordinator;
  const auto ranks = coordinator.StartEpoch(1);
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit small = before;
  small.rlim_cur = 400;
  setrlimit(RLIMIT_NOFILE, &small);
  {
    std::vector<UniqueFd> silent;
    // Both ends are in this process: half of the descriptors are the clients'.
    for (int i = 0; i < 250; ++i) {
      UniqueFd fd = ConnectTo(coordinator.address(), seconds(5));
      if (fd) silent.push_back(std::move(fd));
    }
    EXPECT_GT(silent.size(), 100u);
  }
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + seconds(8));
  v1::GenerateResponse response;
  const grpc::Status status = StubOf(coordinator)->Generate(&context, Request(1, 5), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  setrlimit(RLIMIT_NOFILE, &before);
}

// If this fails, tools such as grpcurl cannot talk to the server without its .proto files.
TEST(CoordinatorTest, ReflectionListsTheServices) {
  CoordinatorProcess coordinator;
  const auto channel = ChannelTo(coordinator);
  const grpc::internal::RpcMethod method(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext context;
  using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  const std::unique_ptr<Stream> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel.get(), method, &context));
  const grpc::Slice list_services("\x3a\x01*", 3);  // field 7, a string
  ASSERT_TRUE(stream->Write(grpc::ByteBuffer(&list_services, 1)));
  grpc::ByteBuffer answer;
  ASSERT_TRUE(stream->Read(&answer));
  grpc::Slice slice;
  ASSERT_TRUE(answer.DumpToSingleSlice(&slice).ok());
  const std::string names(reinterpret_cast<const char*>(slice.begin()), slice.size());
  EXPECT_NE(names.find("jubal.v1.GenerationService"), std::string::npos);
  EXPECT_NE(names.find("grpc.health.v1.Health"), std::string::npos);
  context.TryCancel();
}

// If this fails, two servers share a port and clients meet either of them, or the user is not told
// which address is taken.
TEST(CoordinatorTest, ATakenAddressIsNamed) {
  CoordinatorProcess coordinator;
  CoordinatorOptions options;
  options.control = TestPath("other_control");
  options.listen = coordinator.address();
  try {
    RunCoordinator(options);
    ADD_FAILURE() << "it runs";
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUnavailable);
    EXPECT_NE(std::string(error.what()).find(coordinator.address()), std::string::npos);
  }
  options.control = coordinator.options().control;
  EXPECT_THROW(RunCoordinator(options), UserError);
  options.control = "127.0.0.1:0";  // without a token
  EXPECT_THROW(RunCoordinator(options), UserError);
}

}  // namespace
}  // namespace jubal

#include "rpc/client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <stdexcept>
#include <utility>

#include "jubal/v1/generation.grpc.pb.h"
#include "kernels/error.h"

namespace jubal {
namespace {

using std::chrono::milliseconds;
using std::chrono::system_clock;

constexpr milliseconds kCancelPollTime{50};

[[noreturn]] void Throw(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      throw UserError(ExitStatus::kUnavailable, status.error_message());
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::FAILED_PRECONDITION:
      throw UserError(ExitStatus::kUsage, status.error_message());
    default:
      throw std::runtime_error(fmt::format("the server failed: {}", status.error_message()));
  }
}

v1::GenerateRequest ToWire(const ClientRequest& request) {
  v1::GenerateRequest wire;
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    wire.set_text(*text);
  } else {
    const auto& tokens = std::get<std::vector<TokenId>>(request.prompt);
    wire.mutable_token_ids()->mutable_ids()->Add(tokens.begin(), tokens.end());
  }
  if (request.temperature) wire.set_temperature(*request.temperature);
  if (request.top_p) wire.set_top_p(*request.top_p);
  if (request.top_k) wire.set_top_k(*request.top_k);
  if (request.min_p) wire.set_min_p(*request.min_p);
  if (request.presence_penalty) wire.set_presence_penalty(*request.presence_penalty);
  if (request.frequency_penalty) wire.set_frequency_penalty(*request.frequency_penalty);
  if (request.repetition_penalty) wire.set_repetition_penalty(*request.repetition_penalty);
  if (request.seed) wire.set_seed(*request.seed);
  if (request.max_tokens) wire.set_max_tokens(*request.max_tokens);
  wire.mutable_stop()->Add(request.stop.begin(), request.stop.end());
  wire.set_ignore_eos(request.ignore_eos);
  return wire;
}

// One streaming call. Its reads are waited for in short turns, to see a cancellation between them.
class StreamRead {
 public:
  StreamRead(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
             const std::atomic<bool>& cancel)
      : cancel_(cancel), reader_(stub.AsyncGenerateStream(&context_, request, &queue_, nullptr)) {
    Wait();  // until the call has started
  }

  ~StreamRead() {
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool Read(v1::GenerateStreamResponse* message) {
    reader_->Read(message, nullptr);
    return Wait();
  }

  grpc::Status Finish() {
    grpc::Status status;
    reader_->Finish(&status, nullptr);
    Wait();
    return status;
  }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.AsyncNext(&tag, &ok, system_clock::now() + kCancelPollTime) ==
           grpc::CompletionQueue::TIMEOUT) {
      if (cancel_) context_.TryCancel();
    }
    if (cancel_) context_.TryCancel();
    return ok;
  }

  const std::atomic<bool>& cancel_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader_;
};

}  // namespace

struct Client::Stub {
  std::unique_ptr<v1::GenerationService::Stub> generation;
};

Client::Client(std::unique_ptr<Stub> stub) : stub_(std::move(stub)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() = default;

Client Client::Connect(const std::string& address, milliseconds timeout) {
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  if (!channel->WaitForConnected(system_clock::now() + timeout)) {
    throw UserError(ExitStatus::kUnavailable, fmt::format("no server answers at {}", address));
  }
  return Client(std::make_unique<Stub>(Stub{v1::GenerationService::NewStub(channel)}));
}

ModelInfo Client::GetModelInfo() {
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  const grpc::Status status = stub_->generation->GetModelInfo(&context, {}, &response);
  if (!status.ok()) Throw(status);
  return {.name = response.name(),
          .family = response.family(),
          .vocabulary_size = response.vocabulary_size(),
          .context_length = response.context_length(),
          .eos_ids = {response.eos_token_ids().begin(), response.eos_token_ids().end()},
          .has_tokenizer = response.has_tokenizer(),
          .plan = response.plan(),
          .weight_bytes = response.weight_bytes()};
}

ClientResult Client::Generate(const ClientRequest& request,
                              const std::function<void(const ClientDelta&)>& on_delta,
                              const std::atomic<bool>& cancel) {
  StreamRead stream(*stub_->generation, ToWire(request), cancel);
  ClientResult result;
  v1::GenerateStreamResponse message;
  while (stream.Read(&message)) {
    if (message.has_prompt_info()) {
      result.prompt_tokens = message.prompt_info().prompt_tokens();
      result.seed = message.prompt_info().seed();
    }
    result.completion_tokens = message.first_index() + message.token_ids_size();
    if (message.finish_reason() == v1::FINISH_REASON_STOP) result.finish = FinishReason::kStop;
    if (message.finish_reason() == v1::FINISH_REASON_LENGTH) result.finish = FinishReason::kLength;
    const std::vector<TokenId> tokens(message.token_ids().begin(), message.token_ids().end());
    on_delta({.text = message.text(), .token_ids = tokens});
  }
  const grpc::Status status = stream.Finish();
  if (status.error_code() == grpc::StatusCode::CANCELLED && cancel)
    result.finish.reset();
  else if (!status.ok())
    Throw(status);
  return result;
}

}  // namespace jubal

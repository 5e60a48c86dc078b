#include "rpc/generation_service.h"

#include <fmt/format.h>

#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "rpc/status.h"

namespace jubal {
namespace {

v1::FinishReason ToWire(FinishReason reason) {
  return reason == FinishReason::kStop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
}

std::uint64_t DrawSeed() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

// Appends a delta to either response, which name their fields alike.
template <class Response>
void AddDelta(const OutputDelta& delta, bool logprobs, Response& response) {
  response.mutable_text()->append(delta.text);
  for (const LoggedToken& token : delta.tokens) {
    response.add_token_ids(static_cast<std::uint32_t>(token.token));
    if (logprobs) response.add_logprobs(token.logprob);
  }
}

grpc::Status TooManyTexts() {
  return RetryLater(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many texts wait to be tokenised");
}

// A call that one job on the text worker answers.
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  explicit TextCall(grpc::CallbackServerContext* context) : context_(context) {}

  void End(const grpc::Status& status) {
    AddRetryTrailer(status, *context_);
    Finish(status);
  }

  void OnDone() override { delete this; }

 private:
  grpc::CallbackServerContext* const context_;
};

}  // namespace

// What both ways to generate have in common. A call is used by one thread at a time, except that
// its cancellation comes at any time: that goes through the OpenRequest. Each path ends in exactly
// one Reject or in an output's end.
class GenerationService::GenerateCall : public OpenRequest::Reader {
 protected:
  GenerateCall(GenerationService* service, grpc::CallbackServerContext* context,
               const v1::GenerateRequest* wire)
      : service_(service), context_(context), wire_(wire) {}

  ~GenerateCall() = default;

  // Ends the call before there is any output.
  virtual void Reject(const grpc::Status& status) = 0;

  // To be called once, when the call is fully constructed.
  void Begin() {
    place_ = service_->table_->TakePlace();  // before any work is done for the request
    if (!place_) {
      return Reject(RetryLater(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many open requests"));
    }
    if (auto status = service_->CheckModel(wire_->model()); !status.ok()) return Reject(status);
    if (auto status = CheckRequest(*wire_, service_->limits_); !status.ok()) return Reject(status);
    if (service_->table_->serving() == nullptr) return Reject(service_->table_->refusal());

    request_ = std::make_shared<OpenRequest>(
        service_->table_->NewId(), service_->tokenizer_,
        std::vector<std::string>(wire_->stop().begin(), wire_->stop().end()));
    if (wire_->has_token_ids()) return Submit(ToTokenIds(wire_->token_ids().ids()));
    const bool accepted = service_->worker_->Run(
        wire_->text().size(), [this] { Submit(service_->tokenizer_->Encode(wire_->text())); });
    if (!accepted) Reject(TooManyTexts());
  }

  // True if the call is to be finished now, with CANCELLED.
  bool Cancel() { return request_ != nullptr && service_->table_->Cancel(*request_); }

  void Next() { request_->Next(this); }

  void AddRetry(const grpc::Status& status) { AddRetryTrailer(status, *context_); }

  bool logprobs() const { return wire_->logprobs(); }
  std::uint64_t seed() const { return seed_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }

 private:
  void Submit(std::vector<TokenId> prompt) {
    const auto model = service_->table_->serving();
    if (model == nullptr) return Reject(service_->table_->refusal());
    prompt_tokens_ = static_cast<std::int64_t>(prompt.size());
    GenerationRequest generation =
        ToGenerationRequest(*wire_, std::move(prompt), DrawSeed(), *model, service_->limits_);
    seed_ = generation.sampling.seed;
    if (auto rejection = Validate(generation, model->limits)) return Reject(ToStatus(*rejection));
    const auto status = service_->table_->Submit(request_, std::move(generation));
    if (!status.ok()) return Reject(status);
    Next();
  }

  GenerationService* const service_;
  grpc::CallbackServerContext* const context_;
  const v1::GenerateRequest* const wire_;  // gRPC's, until OnDone
  RequestTable::Place place_;
  std::shared_ptr<OpenRequest> request_;
  std::int64_t prompt_tokens_ = 0;
  std::uint64_t seed_ = 0;
};

class GenerationService::UnaryCall final : public grpc::ServerUnaryReactor, public GenerateCall {
 public:
  UnaryCall(GenerationService* service, grpc::CallbackServerContext* context,
            const v1::GenerateRequest* wire, v1::GenerateResponse* response)
      : GenerateCall(service, context, wire), response_(response) {
    Begin();
  }

  void OnCancel() override {
    if (Cancel()) Finish(grpc::Status::CANCELLED);
  }

  void OnDone() override { delete this; }

 private:
  void Reject(const grpc::Status& status) override {
    AddRetry(status);
    Finish(status);
  }

  void OnOutput(OpenRequest::Output output) override {
    if (output.end && !output.end->ok()) return Reject(*output.end);
    AddDelta(output.delta, logprobs(), *response_);
    if (!output.end) return Next();
    response_->set_finish_reason(ToWire(*output.delta.finish));
    response_->mutable_usage()->set_prompt_tokens(prompt_tokens());
    response_->mutable_usage()->set_completion_tokens(response_->token_ids_size());
    response_->set_seed(seed());
    Finish(grpc::Status::OK);
  }

  v1::GenerateResponse* const response_;
};

class GenerationService::StreamCall final
    : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
      public GenerateCall {
 public:
  StreamCall(GenerationService* service, grpc::CallbackServerContext* context,
             const v1::GenerateRequest* wire)
      : GenerateCall(service, context, wire) {
    Begin();
  }

  // With a write under way, the call ends when that does. The engine is told now: a write to a
  // client that has gone can take minutes to fail.
  void OnCancel() override {
    if (Cancel()) Finish(grpc::Status::CANCELLED);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) Cancel();
    Next();
  }

  void OnDone() override { delete this; }

 private:
  void Reject(const grpc::Status& status) override {
    AddRetry(status);
    Finish(status);
  }

  void OnOutput(OpenRequest::Output output) override {
    if (output.end && !output.end->ok()) return Reject(*output.end);
    const OutputDelta& delta = output.delta;
    message_.Clear();
    if (std::exchange(first_, false)) {
      message_.mutable_prompt_info()->set_prompt_tokens(prompt_tokens());
      message_.mutable_prompt_info()->set_seed(seed());
    }
    message_.set_first_index(delta.first_index);
    AddDelta(delta, logprobs(), message_);
    if (!output.end) return StartWrite(&message_);
    message_.set_finish_reason(ToWire(*delta.finish));
    message_.mutable_usage()->set_prompt_tokens(prompt_tokens());
    message_.mutable_usage()->set_completion_tokens(delta.first_index + message_.token_ids_size());
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  v1::GenerateStreamResponse message_;  // gRPC's while a write is under way
  bool first_ = true;
};

GenerationService::GenerationService(RequestTable* table, TextWorker* worker,
                                     const Tokenizer* tokenizer, const TextLimits& limits,
                                     std::string model_name)
    : table_(table),
      worker_(worker),
      tokenizer_(tokenizer),
      limits_(limits),
      model_name_(std::move(model_name)) {}

grpc::Status GenerationService::CheckModel(const std::string& name) const {
  if (name.empty()) return grpc::Status::OK;
  std::string model = model_name_;
  if (model.empty()) {
    const auto serving = table_->serving();
    if (serving == nullptr) return table_->refusal();
    model = serving->model;
  }
  if (name == model) return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::NOT_FOUND,
                      fmt::format("this server's model is {}, not the one asked for.", model));
}

grpc::ServerUnaryReactor* GenerationService::Generate(grpc::CallbackServerContext* context,
                                                      const v1::GenerateRequest* request,
                                                      v1::GenerateResponse* response) {
  return new UnaryCall(this, context, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerationService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return new StreamCall(this, context, request);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  auto* const call = new TextCall(context);
  grpc::Status status = CheckModel(request->model());
  if (status.ok()) status = CheckText("text", request->text(), limits_);
  if (!status.ok()) {
    call->End(status);
  } else if (!worker_->Run(request->text().size(), [this, call, request, response] {
               const std::vector<TokenId> tokens = tokenizer_->Encode(request->text());
               response->mutable_token_ids()->Add(tokens.begin(), tokens.end());
               call->End(grpc::Status::OK);
             })) {
    call->End(TooManyTexts());
  }
  return call;
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  auto* const call = new TextCall(context);
  grpc::Status status = CheckModel(request->model());
  if (status.ok() && tokenizer_ == nullptr) {
    status = grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                          "this server has no tokenizer, and so no text of tokens.");
  }
  std::vector<TokenId> tokens = ToTokenIds(request->token_ids());
  for (std::size_t i = 0; status.ok() && i < tokens.size(); ++i) {
    if (tokens[i] < 0) {
      status = InvalidField("token_ids", fmt::format("token_ids[{}] is in no vocabulary.", i));
    }
  }
  if (!status.ok()) {
    call->End(status);
  } else if (!worker_->Run(tokens.size() * sizeof(TokenId), [this, call, tokens, response] {
               response->set_text(tokenizer_->Decode(tokens));
               call->End(grpc::Status::OK);
             })) {
    call->End(TooManyTexts());
  }
  return call;
}

grpc::ServerUnaryReactor* GenerationService::GetModelInfo(grpc::CallbackServerContext* context,
                                                          const v1::GetModelInfoRequest* request,
                                                          v1::GetModelInfoResponse* response) {
  auto* const call = new TextCall(context);
  const auto serving = table_->serving();
  grpc::Status status = CheckModel(request->model());
  if (status.ok() && serving == nullptr) status = table_->refusal();
  if (status.ok()) {
    response->set_name(model_name_.empty() ? serving->model : model_name_);
    response->set_family(serving->family);
    response->set_vocabulary_size(serving->limits.vocabulary);
    response->set_context_length(serving->limits.context);
    response->mutable_eos_token_ids()->Add(serving->eos_ids.begin(), serving->eos_ids.end());
    response->set_has_tokenizer(limits_.has_tokenizer);
    response->set_plan(serving->plan);
    response->set_weight_bytes(serving->weight_bytes);
  }
  call->End(status);
  return call;
}

}  // namespace jubal

#include "rpc/request_table.h"

#include <utility>

#include "kernels/check.h"
#include "rpc/status.h"

namespace jubal {

OpenRequest::OpenRequest(RequestId id, const Tokenizer* tokenizer,
                         std::vector<std::string> stop_strings)
    : id_(id), log_(tokenizer, std::move(stop_strings)) {}

void OpenRequest::Next(Reader* reader) {
  std::unique_lock lock(mutex_);
  CHECK(waiting_ == nullptr);
  waiting_ = reader;
  Deliver(std::move(lock));
}

bool OpenRequest::Abandon() {
  const std::lock_guard lock(mutex_);
  abandoned_ = true;
  return std::exchange(waiting_, nullptr) != nullptr;
}

bool OpenRequest::abandoned() const {
  const std::lock_guard lock(mutex_);
  return abandoned_;
}

bool OpenRequest::Append(std::uint32_t epoch, const GenerationEvent& event) {
  std::unique_lock lock(mutex_);
  if (abandoned_ || failure_ || log_.finish()) return false;
  log_.Append(epoch, event);
  const bool stopped = log_.stopped_by_text() && !event.finish;
  Deliver(std::move(lock));
  return stopped;
}

void OpenRequest::Fail(const grpc::Status& status) {
  std::unique_lock lock(mutex_);
  if (failure_ || log_.finish()) return;
  failure_ = status;
  Deliver(std::move(lock));
}

std::optional<OpenRequest::Output> OpenRequest::TakeOutput() {
  if (abandoned_) return Output{.delta = {}, .end = grpc::Status::CANCELLED};
  if (log_.has_delta()) {
    Output output{.delta = log_.TakeDelta(), .end = std::nullopt};
    if (output.delta.finish) output.end = grpc::Status::OK;
    return output;
  }
  if (failure_) return Output{.delta = {}, .end = failure_};
  return std::nullopt;
}

void OpenRequest::Deliver(std::unique_lock<std::mutex> lock) {
  if (waiting_ == nullptr) return;
  std::optional<Output> output = TakeOutput();
  if (!output) return;
  Reader* const reader = std::exchange(waiting_, nullptr);
  lock.unlock();
  reader->OnOutput(std::move(*output));
}

RequestTable::RequestTable(std::int64_t max_open_requests, std::function<void()> wake)
    : max_open_requests_(max_open_requests), wake_(std::move(wake)) {
  Refuse("the model is being loaded");
}

RequestTable::Place RequestTable::TakePlace() {
  if (++open_ <= max_open_requests_) return Place(&open_);
  --open_;
  return Place();
}

std::shared_ptr<const ServingInfo> RequestTable::serving() const {
  const std::lock_guard lock(mutex_);
  return serving_;
}

grpc::Status RequestTable::refusal() const {
  const std::lock_guard lock(mutex_);
  return refusal_;
}

grpc::Status RequestTable::Submit(std::shared_ptr<OpenRequest> request,
                                  GenerationRequest generation) {
  const RequestId id = request->id();
  {
    const std::lock_guard lock(mutex_);
    if (serving_ == nullptr) return refusal_;
    requests_.emplace(id, request);
    outbox_.push_back(SubmitFrame{.id = id, .request = std::move(generation)});
  }
  // A Cancel before this may have missed the table; one after it does not.
  if (request->abandoned()) Remove(id, true);
  wake_();
  return grpc::Status::OK;
}

bool RequestTable::Cancel(OpenRequest& request) {
  const bool waiting = request.Abandon();
  Remove(request.id(), true);
  return waiting;
}

void RequestTable::BeginServing(std::uint32_t epoch, ServingInfo info) {
  const std::lock_guard lock(mutex_);
  epoch_ = epoch;
  serving_ = std::make_shared<const ServingInfo>(std::move(info));
}

void RequestTable::Refuse(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  serving_ = nullptr;
  refusal_ = RetryLater(grpc::StatusCode::UNAVAILABLE, reason);
}

void RequestTable::EndServing(const std::string& reason) {
  Refuse(reason);
  std::unordered_map<RequestId, std::shared_ptr<OpenRequest>> requests;
  {
    const std::lock_guard lock(mutex_);
    requests.swap(requests_);
    outbox_.clear();
  }
  for (const auto& [id, request] : requests) {
    request->Fail(RetryLater(grpc::StatusCode::UNAVAILABLE, reason));
  }
}

void RequestTable::OnEvents(std::uint32_t epoch, std::span<const GenerationEvent> events) {
  for (const GenerationEvent& event : events) {
    const std::shared_ptr<OpenRequest> request = Find(epoch, event.id);
    if (request == nullptr) continue;
    const bool stopped = request->Append(epoch, event);
    if (stopped || event.finish) Remove(event.id, stopped);
  }
}

void RequestTable::OnRejected(std::uint32_t epoch, RequestId id, const Rejection& rejection) {
  const std::shared_ptr<OpenRequest> request = Find(epoch, id);
  if (request == nullptr) return;
  Remove(id, false);
  request->Fail(ToStatus(rejection));
}

std::vector<FrameBody> RequestTable::TakeOutbox() {
  const std::lock_guard lock(mutex_);
  return std::exchange(outbox_, {});
}

bool RequestTable::empty() const {
  const std::lock_guard lock(mutex_);
  return requests_.empty();
}

std::shared_ptr<OpenRequest> RequestTable::Find(std::uint32_t epoch, RequestId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = requests_.find(id);
  return epoch == epoch_ && found != requests_.end() ? found->second : nullptr;
}

void RequestTable::Remove(RequestId id, bool tell_leader) {
  {
    const std::lock_guard lock(mutex_);
    if (requests_.erase(id) == 0) return;
    if (tell_leader) outbox_.push_back(CancelFrame{.id = id});
  }
  // Also when the leader need not know: a drain ends with the last request.
  wake_();
}

}  // namespace jubal

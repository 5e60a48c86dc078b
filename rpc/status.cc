#include "rpc/status.h"

#include <google/protobuf/message.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "kernels/check.h"

namespace jubal {
namespace {

grpc::Status WithDetail(grpc::StatusCode code, const std::string& message,
                        const google::protobuf::Message& detail) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  status.add_details()->PackFrom(detail);
  return grpc::Status(code, message, status.SerializeAsString());
}

}  // namespace

grpc::Status InvalidField(const std::string& field, const std::string& message) {
  google::rpc::BadRequest detail;
  auto* violation = detail.add_field_violations();
  violation->set_field(field);
  violation->set_description(message);
  return WithDetail(grpc::StatusCode::INVALID_ARGUMENT, message, detail);
}

grpc::Status RetryLater(grpc::StatusCode code, const std::string& message) {
  google::rpc::RetryInfo detail;
  detail.mutable_retry_delay()->set_seconds(kRetryMilliseconds / 1000);
  detail.mutable_retry_delay()->set_nanos(kRetryMilliseconds % 1000 * 1'000'000);
  return WithDetail(code, message, detail);
}

grpc::Status ToStatus(const Rejection& rejection) {
  switch (rejection.reason) {
    case Rejection::Reason::kInvalid:
    case Rejection::Reason::kTooLarge:
      return InvalidField(rejection.field, rejection.message);
    case Rejection::Reason::kQueueFull:
      return RetryLater(grpc::StatusCode::RESOURCE_EXHAUSTED, rejection.message);
  }
  CHECK(false);
}

void AddRetryTrailer(const grpc::Status& status, grpc::CallbackServerContext& context) {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
      status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(kRetryMilliseconds));
  }
}

}  // namespace jubal

#ifndef JUBAL_RPC_STATUS_H_
#define JUBAL_RPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>

#include "runtime/request.h"

namespace jubal {

/// How long refused clients are told to wait.
inline constexpr int kRetryMilliseconds = 1000;

/// INVALID_ARGUMENT with a BadRequest that names `field`.
grpc::Status InvalidField(const std::string& field, const std::string& message);

/// UNAVAILABLE or RESOURCE_EXHAUSTED with a RetryInfo.
grpc::Status RetryLater(grpc::StatusCode code, const std::string& message);

grpc::Status ToStatus(const Rejection& rejection);

/// Adds the trailer that tells gRPC's own retries when to try again, if the status is one of
/// RetryLater. To be called before the call is finished.
void AddRetryTrailer(const grpc::Status& status, grpc::CallbackServerContext& context);

}  // namespace jubal

#endif  // JUBAL_RPC_STATUS_H_

#ifndef JUBAL_RPC_GENERATION_SERVICE_H_
#define JUBAL_RPC_GENERATION_SERVICE_H_

#include <cstdint>
#include <string>

#include "jubal/v1/generation.grpc.pb.h"
#include "rpc/generate_request.h"
#include "rpc/request_table.h"
#include "rpc/text_worker.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

/// jubal.v1 over a table of requests. gRPC calls the methods on its few threads: nothing in them
/// waits. All that the constructor takes must outlive the server.
class GenerationService final : public v1::GenerationService::CallbackService {
 public:
  /// `tokenizer` may be null. `model_name`: empty for the leader's word.
  GenerationService(RequestTable* table, TextWorker* worker, const Tokenizer* tokenizer,
                    const TextLimits& limits, std::string model_name);

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;

 private:
  class GenerateCall;
  class UnaryCall;
  class StreamCall;

  // OK if `name` is empty or that of the model, as far as it is known.
  grpc::Status CheckModel(const std::string& name) const;

  RequestTable* const table_;
  TextWorker* const worker_;
  const Tokenizer* const tokenizer_;
  const TextLimits limits_;
  const std::string model_name_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_GENERATION_SERVICE_H_

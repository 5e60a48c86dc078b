#ifndef JUBAL_RPC_COORDINATOR_H_
#define JUBAL_RPC_COORDINATOR_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace jubal {

struct CoordinatorOptions {
  std::string listen = "127.0.0.1:0";  // HOST:PORT for clients; port 0: the system chooses one

  /// Where ranks connect: a socket's path (it has a '/'), or HOST:PORT, which needs a token.
  std::string control;
  std::string control_token;  // the value of kControlTokenVariable (rpc/rank_link.h)

  std::string model_name;                          // as clients give it; empty: the leader's word
  std::optional<std::filesystem::path> tokenizer;  // none: token ids only
  std::uint32_t ranks = 1;

  std::int64_t default_max_tokens = 256;      // of requests that name none; bounded by the context
  std::int64_t max_open_requests = 1024;      // beyond: RESOURCE_EXHAUSTED
  std::int64_t max_message_bytes = 16 << 20;  // of one client message
  std::int64_t max_text_bytes = 8 << 20;      // of one prompt or text to tokenise
  std::int64_t max_connection_streams = 256;  // concurrent calls of one connection

  /// One end of a stream socket pair; the other is the supervisor's. Owned by RunCoordinator.
  int supervisor_fd = -1;
};

/// Runs the process between the clients and the MPI job: gRPC services, tokenizer, token logs and
/// the control connections of the ranks. It outlives the job: an *epoch* is one life of the job.
///
/// Speaks with the supervisor in lines of UTF-8 text, each ended by '\n'. ADDR is HOST:PORT with
/// the real port, or the socket's path. Reasons are one line.
///
///   to the supervisor          when
///   control ADDR               ranks may connect (once, the first line)
///   listening ADDR             clients may connect (once, the second line)
///   serving N                  epoch N takes requests: all ranks said Hello, the leader Ready
///   epoch-failed N REASON      a rank of epoch N ended or broke the protocol, and the supervisor
///                              did not ask for it: it should kill the job (at most once per N)
///
///   from the supervisor
///   epoch N                    ranks of epoch N (> all before, 1 is the first) are expected now
///   epoch-ended N REASON       epoch N's job is gone
///   drain                      take no more requests, finish the open ones; the leader then ends
///                              the job. When all ranks are gone and all clients answered (for
///                              which it waits 5 s), RunCoordinator returns 0.
///   end of file                the supervisor died: everything is cancelled; returns 1 at once
///
/// Health (grpc.health.v1, for "" and "jubal.v1.GenerationService") is SERVING exactly between
/// "serving N" and the end of epoch N or the drain. When an epoch ends, its open requests end with
/// UNAVAILABLE and the reason, which names the rank that ended first.
///
/// The control loop runs on the calling thread; gRPC has its own, and so has the tokenizer. Logs go
/// to standard error and never hold prompts or outputs.
///
/// Throws UserError: kUnavailable if an address cannot be had (naming it), kUsage for a control
/// address on TCP without a token; what Tokenizer::FromFile throws.
int RunCoordinator(const CoordinatorOptions& options);

}  // namespace jubal

#endif  // JUBAL_RPC_COORDINATOR_H_

#ifndef JUBAL_RPC_CLIENT_H_
#define JUBAL_RPC_CLIENT_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/request.h"
#include "runtime/token.h"

namespace jubal {

struct ModelInfo {
  std::string name;
  std::string family;
  std::int64_t vocabulary_size = 0;
  std::int64_t context_length = 0;
  std::vector<TokenId> eos_ids;
  bool has_tokenizer = false;
  std::string plan;
  std::int64_t weight_bytes = 0;
};

/// What to generate. What is absent, the server decides.
struct ClientRequest {
  std::variant<std::string, std::vector<TokenId>> prompt;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<std::int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<float> repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> max_tokens;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

/// The next piece of a generation's output. `text` may be empty while tokens come.
struct ClientDelta {
  std::string_view text;
  const std::vector<TokenId>& token_ids;
};

struct ClientResult {
  std::optional<FinishReason> finish;  // none: cancelled by the caller
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  std::uint64_t seed = 0;  // with it, the same request gives the same tokens
};

/// Speaks jubal.v1 to a server, one call at a time, from one thread.
///
/// Methods throw UserError with the server's message: kUnavailable if it is not there, not ready or
/// too busy, kUsage if it refuses the request; std::runtime_error for anything else.
class Client {
 public:
  /// Waits for the connection, up to `timeout`. Throws UserError(kUnavailable) naming the address.
  static Client Connect(const std::string& address, std::chrono::milliseconds timeout);

  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  ~Client();

  ModelInfo GetModelInfo();

  /// Calls `on_delta` for each message, on this thread. Returns at the end, or within 100 ms of
  /// `cancel` becoming true (a signal handler may set it).
  ClientResult Generate(const ClientRequest& request,
                        const std::function<void(const ClientDelta&)>& on_delta,
                        const std::atomic<bool>& cancel);

 private:
  struct Stub;
  explicit Client(std::unique_ptr<Stub> stub);

  std::unique_ptr<Stub> stub_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_CLIENT_H_

#ifndef JUBAL_RPC_TOKEN_LOG_H_
#define JUBAL_RPC_TOKEN_LOG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/request.h"
#include "runtime/text_stream.h"
#include "runtime/token.h"

namespace jubal {

struct LoggedToken {
  TokenId token = 0;
  float logprob = 0.0f;
  std::uint32_t epoch = 0;  // the life of the MPI job that drew it
};

/// What a reader of a log gets at once: what came since it last took something.
struct OutputDelta {
  std::int64_t first_index = 0;
  std::vector<LoggedToken> tokens;  // token first_index and on
  std::string text;                 // whole code points
  std::optional<FinishReason> finish;
};

/// All tokens of one request, in order: the truth about its output. A token is appended before any
/// of it is sent to the client, and never taken back. The text, the stop strings and the end are a
/// fold over the tokens, and nothing else. Not thread-safe.
class TokenLog {
 public:
  /// As TextStream takes them.
  TokenLog(const Tokenizer* tokenizer, std::vector<std::string> stop_strings);

  /// Takes the engine's next event. Requires that the log has not finished, and the event's epoch
  /// not to be before that of the last token.
  void Append(std::uint32_t epoch, const GenerationEvent& event);

  std::int64_t size() const { return static_cast<std::int64_t>(tokens_.size()); }
  const LoggedToken& operator[](std::int64_t index) const {
    return tokens_[static_cast<std::size_t>(index)];
  }

  /// Set when the engine said so or a stop string was found; nothing can be appended any more.
  std::optional<FinishReason> finish() const { return finish_; }

  /// Whether the end was a stop string, of which the engine does not know.
  bool stopped_by_text() const { return stopped_by_text_; }

  /// Whether TakeDelta has something to give.
  bool has_delta() const;

  /// What was not taken yet. The engine's pace and the reader's meet here: a reader that comes
  /// rarely gets more at once, and what waits for it is no larger than its own output.
  OutputDelta TakeDelta();

 private:
  std::vector<LoggedToken> tokens_;
  TextStream text_;
  std::string new_text_;
  std::int64_t taken_ = 0;  // tokens
  bool finish_taken_ = false;
  bool stopped_by_text_ = false;
  std::optional<FinishReason> finish_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_TOKEN_LOG_H_

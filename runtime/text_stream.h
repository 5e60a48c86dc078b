#ifndef JUBAL_RUNTIME_TEXT_STREAM_H_
#define JUBAL_RUNTIME_TEXT_STREAM_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/token.h"
#include "runtime/tokenizer/streaming_decoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

/// Folds the tokens of one request into its text, up to the first stop string. Not thread-safe.
///
/// The text ends before the stop string that is complete first; of several complete at the same
/// byte, before the longest. How the tokens cut the text makes no difference. Text that may be
/// the beginning of a stop string is held back until that is settled.
class TextStream {
 public:
  struct Delta {
    std::string text;      // new and certain: UTF-8, often empty
    bool stopped = false;  // a stop string was found; this is the last text
  };

  /// `tokenizer` outlives this; without one (null) there is no text and no stop. Stop strings are
  /// UTF-8 and not empty. `continues_text`: see StreamingDecoder.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
             bool continues_text = true);

  /// Takes time in proportion to the token's text and the stop strings, however long the text has
  /// become. Not to be called once stopped or finished. `token` >= 0.
  Delta Append(TokenId token);

  /// What was held back, up to a stop string if it completes one; empty once stopped. To be called
  /// at most once.
  std::string Finish();

 private:
  // Follows the text through one stop string (Knuth, Morris and Pratt).
  class StopMatcher {
   public:
    explicit StopMatcher(std::string pattern);

    void Advance(char byte);
    // Bytes of the stop string, from its first, that the text ends with.
    std::size_t matched() const { return matched_; }
    bool complete() const { return matched_ == pattern_.size(); }

   private:
    std::string pattern_;
    std::vector<std::size_t> borders_;  // of each prefix: the longest proper prefix that ends it
    std::size_t matched_ = 0;
  };

  Delta Feed(std::string_view text);

  std::optional<StreamingDecoder> decoder_;
  std::vector<StopMatcher> matchers_;
  std::string held_back_;  // the text's end that some stop string begins with
  bool ended_ = false;     // stopped or finished
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TEXT_STREAM_H_

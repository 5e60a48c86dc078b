#include "rpc/token_log.h"

#include <utility>

#include "kernels/check.h"

namespace jubal {

TokenLog::TokenLog(const Tokenizer* tokenizer, std::vector<std::string> stop_strings)
    : text_(tokenizer, std::move(stop_strings)) {}

void TokenLog::Append(std::uint32_t epoch, const GenerationEvent& event) {
  CHECK(!finish_);
  if (event.token) {
    if (!tokens_.empty()) CHECK_GE(epoch, tokens_.back().epoch);
    tokens_.push_back({.token = *event.token, .logprob = event.logprob, .epoch = epoch});
    TextStream::Delta delta = text_.Append(*event.token);
    new_text_ += delta.text;
    if (delta.stopped) {
      stopped_by_text_ = true;
      finish_ = FinishReason::kStop;
      return;
    }
  }
  if (event.finish) {
    new_text_ += text_.Finish();
    finish_ = event.finish;
  }
}

bool TokenLog::has_delta() const {
  return taken_ < size() || !new_text_.empty() || (finish_ && !finish_taken_);
}

OutputDelta TokenLog::TakeDelta() {
  OutputDelta delta;
  delta.first_index = taken_;
  delta.tokens.assign(tokens_.begin() + taken_, tokens_.end());
  delta.text = std::exchange(new_text_, {});
  delta.finish = finish_;
  taken_ = size();
  finish_taken_ = finish_.has_value();
  return delta;
}

}  // namespace jubal

#ifndef JUBAL_RUNTIME_LOGIT_READER_H_
#define JUBAL_RUNTIME_LOGIT_READER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "kernels/sample.h"
#include "kernels/tensor.h"
#include "runtime/decoder.h"
#include "runtime/token.h"

namespace jubal {

/// What the leader makes of a step's logits: draws, and log probabilities. It works where the
/// decoder computes, and on a GPU only the results come to the host, all of a step at once.
class LogitReader {
 public:
  /// `decoder` must outlive the reader, which only the leader uses.
  explicit LogitReader(Decoder& decoder);

  // For a LogitsSink: rows of logits, and entries [first, first + rows) of the step. They enqueue.
  void Draw(std::int64_t first, ConstTensorView logits, std::span<const SampleRow> rows);
  void Score(std::int64_t first, ConstTensorView logits, std::span<const TokenId> targets);

  /// Ends the step, of whose entries [0, count) all have been drawn or scored, and enqueues the way
  /// to the host. At most two steps may be unread, on a CPU one.
  void Finish(std::int64_t count);

  struct Results {
    std::span<const std::int32_t> ids;  // drawn; of a score undefined
    std::span<const float> logprobs;
  };
  /// Waits for the step that was finished first of those unread. Valid until the second Finish from
  /// now, on a CPU until the next step. Throws UserError (kBadData) where logits are not finite.
  Results Read();

 private:
  /// A step whose results are on their way.
  struct Unread {
    std::int64_t count = 0;
    TensorView results;         // where they will be
    Stream* arrival = nullptr;  // on a GPU: done when they are there
  };

  Decoder& decoder_;
  std::array<std::unique_ptr<Stream>, std::tuple_size_v<PinnedRing>> arrivals_;
  std::deque<Unread> unread_;
  std::size_t finished_ = 0;  // steps
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_LOGIT_READER_H_

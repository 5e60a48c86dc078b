#ifndef JUBAL_KERNELS_SAMPLE_H_
#define JUBAL_KERNELS_SAMPLE_H_

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace jubal {

/// How one row's next token is drawn. In this order: penalties, temperature, top_k, top_p, min_p.
struct SampleRow {
  float temperature = 1.0f;        // 0: the largest logit, lowest id on a tie
  std::int32_t top_k = 0;          // keep that many of the largest; 0 keeps all
  float top_p = 1.0f;              // keep the most probable until their sum reaches this
  float min_p = 0.0f;              // keep those at least min_p times as probable as the first
  float presence_penalty = 0.0f;   // subtracted from the logit of each token produced before
  float frequency_penalty = 0.0f;  // … times its count
  float repetition_penalty = 1.0f;  // logits of tokens seen before (prompt too): ÷ if > 0, × if < 0
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  // of the new token: with the seed, the random number's whole key
  std::span<const std::int32_t> seen = {};             // distinct tokens of prompt and output
  std::span<const std::int32_t> produced = {};         // distinct tokens of the output …
  std::span<const std::int32_t> produced_counts = {};  // … and how often each
};

/// Draws one token per row. A row with a logit that is not finite gets id 0 and logprob NaN, here
/// and in LogProb. The random number is Philox4x32-10 keyed by (seed, position), so the draw does
/// not depend on the batch. Probabilities are added up as integers, so that it does not depend on
/// the device either: a token 2⁴⁰ times less probable than the first is never drawn.
///
/// On a GPU `rows` stay on the host. They have been read when Run returns, so that the operation
/// cannot be recorded.
struct Sample {
  TensorView ids;          // [rows] i32
  TensorView logprobs;     // [rows] f32: ln softmax(logits)[id], before penalties and temperature
  ConstTensorView logits;  // [rows, vocabulary] f32
  std::span<const SampleRow> rows;  // host memory
  TensorView workspace;             // [≥ SampleWorkspaceBytes(…)] u8, 64-byte aligned
};

/// For at most that many rows, whose lists `seen` and `produced` have at most `max_listed` entries
/// each: no more than the context has tokens. On CPUs only the vocabulary counts: 2²⁴ at most.
std::int64_t SampleWorkspaceBytes(std::int64_t vocabulary, std::int64_t rows,
                                  std::int64_t max_listed, Device device);

/// out[r] = ln softmax(logits[r, :])[ids[r]]
struct LogProb {
  TensorView out;          // [rows] f32
  ConstTensorView logits;  // [rows, vocabulary] f32
  ConstTensorView ids;     // [rows] i32
};

void Check(const Sample& op);
void RunOnCpu(const Sample& op);

void Check(const LogProb& op);
void RunOnCpu(const LogProb& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_SAMPLE_H_

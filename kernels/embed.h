#ifndef JUBAL_KERNELS_EMBED_H_
#define JUBAL_KERNELS_EMBED_H_

#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

/// out[t, :] = multiplier · table[token_ids[t], :] where the rank holds that row, else 0: the sum
/// over the ranks that divide the vocabulary is the embedding, exactly.
///
/// The table is packed as the output matrix is, transposed: K = hidden, N = vocabulary, split
/// kByOutput, f32, bf16 or int8, so that a tied model holds it once.
struct Embed {
  TensorView out;             // [tokens, hidden] f32
  ConstTensorView token_ids;  // [tokens] i32, 0 ≤ id < vocabulary
  PackedMatrix table;
  float multiplier = 1.0f;
};

void Check(const Embed& op);
void RunOnCpu(const Embed& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_EMBED_H_

#ifndef JUBAL_KERNELS_FILL_DRAWN_TOKENS_H_
#define JUBAL_KERNELS_FILL_DRAWN_TOKENS_H_

#include "kernels/tensor.h"

namespace jubal {

/// Where a token was not known yet when the host wrote it, puts what has been drawn since:
/// token_ids[t] ← drawn[−1 − token_ids[t]] wherever token_ids[t] < 0.
struct FillDrawnTokens {
  TensorView token_ids;   // [tokens] i32
  ConstTensorView drawn;  // [draws] i32; −1 − token_ids[t] < draws
};

void Check(const FillDrawnTokens& op);
void RunOnCpu(const FillDrawnTokens& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_FILL_DRAWN_TOKENS_H_

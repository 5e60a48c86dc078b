#ifndef JUBAL_KERNELS_MATMUL_H_
#define JUBAL_KERNELS_MATMUL_H_

#include <span>

#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

// Products with weight matrices. What the sums mean, exactly, so that every form and every
// instruction set agrees (`k` counts the rows of the matrix):
//
//   f32, bf16   per column one fp32 accumulator, fused multiply-add in ascending k within a chunk.
//               On a GPU each run of 512 k of a chunk has an accumulator of its own, and runs are
//               added in ascending order. f32: the accumulator is as above. bf16: x is the sum of
//               two bfloat16, x_hi = bf16(x) and x_lo = bf16(x − x_hi), to nearest; per 16 k,
//               ascending, what the tensor cores make of accumulator + Σ x_hi · w, then the same of
//               x_lo.
//   int8, int4  the activation row (kByOutput) or its part in one chunk (kByInput) is quantised to
//               15 bits: s = max|x| / 16383, a = rint(x / s) to even; s = 0 when the row is 0.
//               Integer dot products are exact and flushed to fp32 at every 512 k of a group and at
//               its end; flushes add up in order; total = Σ_groups flushes · scale[group], in
//               order; y = total · s.
//
// A row of the result depends on its row of x alone, never on the other rows, on threads or ranks.
// All operands of one operation lie on one device.

/// out = multiplier · (x · W): whole columns. W is split kByOutput.
struct Matmul {
  TensorView out;     // [tokens, layout.columns.size()] f32
  ConstTensorView x;  // [tokens, K] f32, any row stride
  PackedMatrix weight;
  float multiplier = 1.0f;
  TensorView workspace;  // [≥ MatmulWorkspaceBytes(layout, tokens)] u8, 64-byte aligned
};

/// Most products of one Matmuls.
inline constexpr std::size_t kMostMatmuls = 4;

/// Several such products of one x, with matrices of one type and K, as one list of work.
struct Matmuls {
  std::span<const Matmul> products;  // the same x and workspace in each
};

/// Partial products of the chunks held, added up to maximal subtrees of the tree over the 8 chunks.
/// W is split kByInput.
struct MatmulPartials {
  TensorView out;     // [MaximalSubtrees(layout.chunks).size(), tokens, N] f32
  ConstTensorView x;  // [tokens, layout.InputRows().size()] f32, any row stride
  PackedMatrix weight;
  TensorView workspace;
};

/// Bytes of workspace that any of these needs for that many rows of x, where `device` computes.
std::int64_t MatmulWorkspaceBytes(const MatrixLayout& layout, std::int64_t rows,
                                  Device device = Device::kCpu);

void Check(const Matmul& op);
void RunOnCpu(const Matmul& op);
void RunReference(const Matmul& op);

void Check(const Matmuls& op);
void RunOnCpu(const Matmuls& op);
void RunReference(const Matmuls& op);

void Check(const MatmulPartials& op);
void RunOnCpu(const MatmulPartials& op);
void RunReference(const MatmulPartials& op);

/// The contract on one weight matrix, whatever the operation.
void CheckWeight(const PackedMatrix& weight, Split split, Device device);

}  // namespace jubal

#endif  // JUBAL_KERNELS_MATMUL_H_

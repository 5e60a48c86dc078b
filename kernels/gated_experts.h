#ifndef JUBAL_KERNELS_GATED_EXPERTS_H_
#define JUBAL_KERNELS_GATED_EXPERTS_H_

#include "kernels/gated_activation.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

/// The experts' feed-forward: for each local expert e and its rows [offsets[e], offsets[e + 1]) of
/// x, the partial products of
///   (activation(x · gate_e) ⊙ (x · up_e)) · down_e
/// over the columns and chunks of the hidden width that the rank holds, added up to maximal
/// subtrees. Rows at and beyond the last offset are left alone. What the sums mean: matmul.h.
struct GatedExperts {
  TensorView out;           // [MaximalSubtrees(down.layout.chunks).size(), rows, N] f32
  ConstTensorView x;        // [rows, K] f32
  ConstTensorView offsets;  // [local experts + 1] i32, ascending from 0
  PackedMatrix gate;        // experts × [K, hidden], split kByOutput: the columns of down's chunks
  PackedMatrix up;          // the same
  PackedMatrix down;        // experts × [hidden, N], split kByInput
  Activation activation = Activation::kGeluTanh;
  TensorView hidden;     // [rows, columns of gate] f32: in between
  TensorView workspace;  // [≥ GatedExpertsWorkspaceBytes] u8, 64-byte aligned
};

std::int64_t GatedExpertsWorkspaceBytes(const MatrixLayout& gate, const MatrixLayout& down,
                                        std::int64_t rows, Device device = Device::kCpu);

void Check(const GatedExperts& op);
void RunOnCpu(const GatedExperts& op);
void RunReference(const GatedExperts& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_GATED_EXPERTS_H_

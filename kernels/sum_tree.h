#ifndef JUBAL_KERNELS_SUM_TREE_H_
#define JUBAL_KERNELS_SUM_TREE_H_

#include <span>

#include "kernels/chunks.h"
#include "kernels/tensor.h"

namespace jubal {

/// Completes the tree over the 8 chunks from subtrees that tile it: out = the root.
struct SumTree {
  TensorView out;                             // [rows, n] f32; may be partials[0]
  std::span<const ConstTensorView> partials;  // each [rows, n] f32, one per subtree
  std::span<const Subtree> subtrees;          // in order, tiling chunks 0 … 7
};

void Check(const SumTree& op);
void RunOnCpu(const SumTree& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_SUM_TREE_H_

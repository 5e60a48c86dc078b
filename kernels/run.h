#ifndef JUBAL_KERNELS_RUN_H_
#define JUBAL_KERNELS_RUN_H_

#include "kernels/stream.h"

namespace jubal {

// An operation is a struct that names its operands, and these functions beside it:
//
//   void Check(const Op&)        its contract: shapes, dtypes, aliasing; a breach is our bug
//   void RunOnCpu(const Op&)     its CPU form; a light operation's is also its specification
//
// A heavy operation (Matmul, GatedExperts, PagedAttention …) has a fast CPU form and one more:
//
//   void RunReference(const Op&)  its specification: plain loops; only tests call it
//
// Leaving one out is a link error, and tests hold every form to the specification. No operation
// allocates: what it needs beyond its operands is a `workspace` operand with a function beside the
// struct that tells its size.

/// The form that enqueues the operation to a GPU's stream. kernels/cuda/forms.h gives each
/// operation its own when a GPU is opened; without one it is null.
template <class Op>
inline void (*gpu_form)(const Op& op, Stream& stream) = nullptr;

/// Checks `op`, then runs it where `stream` lives.
template <class Op>
void Run(const Op& op, Stream& stream) {
  Check(op);
  if (stream.device() == Device::kCpu) {
    RunOnCpu(op);
    return;
  }
  CHECK(gpu_form<Op> != nullptr);
  gpu_form<Op>(op, stream);
}

/// Checks `op`, then runs its specification on the CPU. For tests.
template <class Op>
void RunSpecification(const Op& op) {
  Check(op);
  if constexpr (requires { RunReference(op); }) {
    RunReference(op);
  } else {
    RunOnCpu(op);
  }
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_RUN_H_

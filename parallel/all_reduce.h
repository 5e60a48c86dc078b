#ifndef JUBAL_PARALLEL_ALL_REDUCE_H_
#define JUBAL_PARALLEL_ALL_REDUCE_H_

#include "kernels/chunks.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "parallel/communicator.h"

namespace jubal {

/// The canonical all-reduce: out ← the root of the tree over the 8 chunks, on every rank of
/// `group`, the same bits for every group size.
///
/// Rank r of the group owns OwnedChunks(r, size) and brings one partial per maximal subtree of
/// them. Small batches are gathered whole; larger ones are divided among the members, summed and
/// gathered. The others read out and partials faster where they are of the group's NewArena.
struct AllReduceTree {
  TensorView out;            // [rows, n] f32
  ConstTensorView partials;  // [own subtrees, rows, n] f32
  TensorView workspace;      // [≥ AllReduceTreeBytes(size, rows, n)] u8, 64-byte aligned
};

std::int64_t AllReduceTreeBytes(int group_size, std::int64_t max_rows, std::int64_t n);

void Run(const AllReduceTree& op, Communicator& group, Stream& stream);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_ALL_REDUCE_H_

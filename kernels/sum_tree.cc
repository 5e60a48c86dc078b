#include "kernels/sum_tree.h"

#include <algorithm>
#include <bit>

namespace jubal {
namespace {

constexpr std::int64_t kBlock = 256;  // columns added up on the stack
// Subtrees that wait for their right-hand neighbours halve in size: 4, 2, 1, and one more arrives.
constexpr int kMaxPending = 4;

void AddUp(const SumTree& op, std::int64_t row, std::int64_t begin, std::int64_t count) {
  float sums[kMaxPending][kBlock];
  int sizes[kMaxPending];
  int pending = 0;
  for (std::size_t p = 0; p < op.partials.size(); ++p) {
    std::copy_n(op.partials[p].row<float>(row) + begin, count, sums[pending]);
    sizes[pending++] = op.subtrees[p].num_chunks;
    while (pending > 1 && sizes[pending - 1] == sizes[pending - 2]) {
      --pending;
      float* left = sums[pending - 1];
      const float* right = sums[pending];
      for (std::int64_t i = 0; i < count; ++i) left[i] += right[i];
      sizes[pending - 1] *= 2;
    }
  }
  std::copy_n(sums[0], count, op.out.row<float>(row) + begin);
}

}  // namespace

void Check(const SumTree& op) {
  CHECK(op.out.dtype() == DType::kF32 && op.out.rank() == 2);
  CHECK_EQ(op.partials.size(), op.subtrees.size());
  int next = 0;
  for (std::size_t p = 0; p < op.partials.size(); ++p) {
    const Subtree& subtree = op.subtrees[p];
    CHECK(op.partials[p].dtype() == DType::kF32);
    CHECK(op.partials[p].shape() == op.out.shape());
    CHECK_EQ(subtree.first_chunk, next);
    CHECK(std::has_single_bit(static_cast<unsigned>(subtree.num_chunks)));
    CHECK_EQ(subtree.first_chunk % subtree.num_chunks, 0);
    next += subtree.num_chunks;
  }
  CHECK_EQ(next, kChunks);
}

void RunOnCpu(const SumTree& op) {
  const std::int64_t rows = op.out.size(0);
  const std::int64_t n = op.out.size(1);
  const std::int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for collapse(2) if (rows * n > 64 * kBlock)
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      AddUp(op, r, b * kBlock, std::min(kBlock, n - b * kBlock));
    }
  }
}

}  // namespace jubal

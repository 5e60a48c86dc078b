#include "kernels/sum_tree.h"

#include <algorithm>
#include <bit>

namespace jubal {
namespace {

constexpr std::int64_t kBlock = 1024;       // columns whose sums are kept on the stack
constexpr std::int64_t kAlone = 16 * 1024;  // numbers that one thread adds up as fast as several
// Subtrees that wait for their right-hand neighbours halve in size: 4, 2, 1, and one more arrives.
constexpr int kMaxPending = 4;

/// sum may be left or right.
void Add(float* sum, const float* left, const float* right, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) sum[i] = left[i] + right[i];
}

void AddUp(const SumTree& op, std::int64_t row, std::int64_t begin, std::int64_t count) {
  float sums[kMaxPending - 1][kBlock];
  const float* pending[kMaxPending];  // in a partial, or in sums
  int sizes[kMaxPending];
  int top = -1;
  for (std::size_t p = 0; p < op.partials.size(); ++p) {
    pending[++top] = op.partials[p].row<float>(row) + begin;
    sizes[top] = op.subtrees[p].num_chunks;
    for (; top > 0 && sizes[top] == sizes[top - 1]; --top) {
      const bool root = 2 * sizes[top] == kChunks;
      float* const sum = root ? op.out.row<float>(row) + begin : sums[top - 1];
      Add(sum, pending[top - 1], pending[top], count);
      pending[top - 1] = sum;
      sizes[top - 1] *= 2;
    }
  }
  // Of a tree of one partial the sum is that.
  if (op.partials.size() == 1) std::copy_n(pending[0], count, op.out.row<float>(row) + begin);
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
  const auto add_up = [&](std::int64_t i) {
    const std::int64_t begin = i % blocks * kBlock;
    AddUp(op, i / blocks, begin, std::min(kBlock, n - begin));
  };
  // Entering a parallel region takes as long as adding up a few thousand numbers, even alone.
  if (rows * n <= kAlone) {
    for (std::int64_t i = 0; i < rows * blocks; ++i) add_up(i);
    return;
  }
#pragma omp parallel for
  for (std::int64_t i = 0; i < rows * blocks; ++i) add_up(i);
}

}  // namespace jubal

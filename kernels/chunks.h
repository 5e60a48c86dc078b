#ifndef JUBAL_KERNELS_CHUNKS_H_
#define JUBAL_KERNELS_CHUNKS_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/host_device.h"

namespace jubal {

/// Every row-parallel product (attention output, expert down) is cut along K into this many chunks,
/// whatever the number of ranks, and its result is a fixed binary tree over the chunks' partial
/// products: ((0+1)+(2+3))+((4+5)+(6+7)). That makes the bits independent of the plan.
inline constexpr int kChunks = 8;

/// ⌈a / b⌉ of what is not negative.
template <class Integer>
JUBAL_HOST_DEVICE constexpr Integer DivideUp(Integer a, std::type_identity_t<Integer> b) {
  return (a + b - 1) / b;
}

/// A half-open range.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool operator==(const Range&) const = default;
};

/// Columns [⌊cK/8⌋, ⌊(c+1)K/8⌋) of an input dimension of extent K: chunk c.
inline Range ChunkColumns(std::int64_t extent, int chunk) {
  return {extent * chunk / kChunks, extent * (chunk + 1) / kChunks};
}

/// The chunks of member `index` of `count` (1 … 8): [⌈8·index/count⌉, ⌈8·(index+1)/count⌉), so
/// three members own 3, 3 and 2.
inline Range OwnedChunks(int index, int count) {
  const auto begin = [&](int i) { return (kChunks * i + count - 1) / count; };
  return {begin(index), begin(index + 1)};
}

/// The input columns that chunks [owned.begin, owned.end) cover together.
inline Range ColumnsOfChunks(std::int64_t extent, Range owned) {
  return {extent * owned.begin / kChunks, extent * owned.end / kChunks};
}

/// A node of the tree over the chunks: leaves [first_chunk, first_chunk + num_chunks), where
/// num_chunks is a power of two and first_chunk a multiple of it.
struct Subtree {
  int first_chunk = 0;
  int num_chunks = 1;

  bool operator==(const Subtree&) const = default;
};

/// The fewest subtrees that tile the chunks [owned.begin, owned.end), in order: what a member
/// contributes to an all-reduce. One for 1, 2, 4 or 8 members, at most two otherwise.
std::vector<Subtree> MaximalSubtrees(Range owned);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CHUNKS_H_

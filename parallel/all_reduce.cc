#include "parallel/all_reduce.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/run.h"
#include "kernels/sum_tree.h"
#include "parallel/plan.h"
#include "parallel/row_transfer.h"

namespace jubal {
namespace {

// What one rank receives of the others' whole partials. Up to here the time goes into rounds of
// messages, not bytes, and one round beats two.
constexpr std::int64_t kGatherWholeBytes = 64 * 1024;

/// Most rows that are gathered whole.
std::int64_t WholeRows(int group_size, std::int64_t n) {
  return kGatherWholeBytes / ((group_size - 1) * n * SizeOf(DType::kF32));
}

using RowCounts = std::array<std::int64_t, kChunks>;  // one for each member

/// How the members tile the tree over the 8 chunks.
struct Tiling {
  explicit Tiling(int group_size) {
    for (int r = 0; r < group_size; ++r) {
      for (const Subtree& subtree : MaximalSubtrees(OwnedChunks(r, group_size))) {
        subtrees[total++] = subtree;
        ++count_of[static_cast<std::size_t>(r)];
      }
    }
  }

  std::array<Subtree, kChunks> subtrees;
  std::size_t total = 0;
  RowCounts count_of{};  // subtrees of each member
};

TensorView Matrix(TensorView memory, std::int64_t rows, std::int64_t n) {
  CHECK_GE(memory.bytes(), rows * n * SizeOf(DType::kF32));
  return TensorView(memory.raw(), DType::kF32, {rows, n}, memory.device());
}

void GatherWhole(const AllReduceTree& op, const Tiling& tiling, Communicator& group,
                 Stream& stream) {
  const std::int64_t rows = op.out.size(0);
  const std::int64_t n = op.out.size(1);
  const auto members = static_cast<std::size_t>(group.size());
  RowCounts brought{};
  for (std::size_t r = 0; r < members; ++r) brought[r] = tiling.count_of[r] * rows;
  const auto sum = [&](std::span<const ConstTensorView> rows_of_rank) {
    std::array<ConstTensorView, kChunks> partials;
    std::size_t tile = 0;
    for (std::size_t r = 0; r < members; ++r) {
      for (std::int64_t i = 0; i < tiling.count_of[r]; ++i) {
        partials[tile++] = rows_of_rank[r].Rows(i * rows, rows);
      }
    }
    Run(SumTree{.out = op.out,
                .partials = std::span(partials).first(tiling.total),
                .subtrees = std::span(tiling.subtrees).first(tiling.total)},
        stream);
  };
  group.VisitRows(Matrix(op.workspace, static_cast<std::int64_t>(tiling.total) * rows, n),
                  op.partials.Reshaped({op.partials.size(0) * rows, n}),
                  std::span(brought).first(members), sum, stream);
}

void Divide(const AllReduceTree& op, const Tiling& tiling, Communicator& group, Stream& stream) {
  const std::int64_t elements = op.out.shape().elements();
  const auto members = static_cast<std::size_t>(group.size());
  const auto self = static_cast<std::size_t>(group.rank());
  RowCounts part_of{};
  for (std::size_t r = 0; r < members; ++r) {
    part_of[r] = OwnedRange(elements, static_cast<int>(r), group.size()).size();
  }
  const std::int64_t mine = part_of[self];
  const TensorView received =
      Matrix(op.workspace, static_cast<std::int64_t>(tiling.total) * mine, 1);

  // Everybody's first subtree, then the second of those who have two: each is sent from where it
  // lies.
  std::array<ConstTensorView, kChunks> partials;
  std::int64_t place = 0;
  const std::int64_t rounds = *std::max_element(tiling.count_of.begin(), tiling.count_of.end());
  for (std::int64_t round = 0; round < rounds; ++round) {
    const bool sending = round < tiling.count_of[self];
    const std::int64_t sent = sending ? round : 0;
    RowCounts send_rows{};
    RowCounts recv_rows{};
    const std::int64_t begin = place;
    std::size_t tile = 0;
    for (std::size_t r = 0; r < members; ++r) {
      if (sending) send_rows[r] = part_of[r];
      if (round < tiling.count_of[r]) {
        recv_rows[r] = mine;
        partials[tile + static_cast<std::size_t>(round)] =
            received.Rows(place, mine).Reshaped({1, mine});
        place += mine;
      }
      tile += static_cast<std::size_t>(tiling.count_of[r]);
    }
    group.AllToAllRows(received.Rows(begin, place - begin), std::span(recv_rows).first(members),
                       op.partials.Rows(sent, 1).Reshaped({elements, 1}),
                       std::span(send_rows).first(members), stream);
  }

  const TensorView out = op.out.Reshaped({elements, 1});
  const TensorView part = out.Rows(OwnedRange(elements, group.rank(), group.size()).begin, mine);
  Run(SumTree{.out = part.Reshaped({1, mine}),
              .partials = std::span(partials).first(tiling.total),
              .subtrees = std::span(tiling.subtrees).first(tiling.total)},
      stream);
  group.AllGatherRows(out, part, std::span(part_of).first(members), stream);
}

}  // namespace

std::int64_t AllReduceTreeBytes(int group_size, std::int64_t max_rows, std::int64_t n) {
  CHECK(1 <= group_size && group_size <= kChunks);
  if (group_size == 1) return 0;
  const std::int64_t whole = std::min(max_rows, WholeRows(group_size, n));
  const std::int64_t divided = (max_rows * n + group_size - 1) / group_size;
  return static_cast<std::int64_t>(Tiling(group_size).total) * std::max(whole * n, divided) *
         SizeOf(DType::kF32);
}

void Run(const AllReduceTree& op, Communicator& group, Stream& stream) {
  CHECK_LE(group.size(), kChunks);
  CHECK(op.out.dtype() == DType::kF32 && op.partials.dtype() == DType::kF32);
  CHECK(op.out.rank() == 2 && op.out.dense() && op.partials.rank() == 3 && op.partials.dense());
  CHECK_EQ(op.partials.size(1), op.out.size(0));
  CHECK_EQ(op.partials.size(2), op.out.size(1));
  const std::int64_t rows = op.out.size(0);
  if (rows == 0) return;
  if (group.size() == 1) {
    CHECK_EQ(op.partials.size(0), 1);
    CopyBytes(op.out, op.partials, op.out.bytes(), stream);
    return;
  }
  const Tiling tiling(group.size());
  CHECK_EQ(op.partials.size(0), tiling.count_of[static_cast<std::size_t>(group.rank())]);
  if (rows <= WholeRows(group.size(), op.out.size(1))) {
    GatherWhole(op, tiling, group, stream);
  } else {
    Divide(op, tiling, group, stream);
  }
}

}  // namespace jubal

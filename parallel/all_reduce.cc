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

// Up to here the time goes into messages, not bytes, and one round of them beats two.
constexpr std::int64_t kGatherWholeBytes = 64 * 1024;

bool GatheredWhole(std::int64_t rows, std::int64_t n) {
  return rows * n * SizeOf(DType::kF32) <= kGatherWholeBytes;
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
  const TensorView all = Matrix(op.workspace, static_cast<std::int64_t>(tiling.total) * rows, n);
  group.AllGatherRows(all, op.partials.Reshaped({op.partials.size(0) * rows, n}),
                      std::span(brought).first(members), stream);
  std::array<ConstTensorView, kChunks> partials;
  for (std::size_t i = 0; i < tiling.total; ++i) {
    partials[i] = all.Rows(static_cast<std::int64_t>(i) * rows, rows);
  }
  Run(SumTree{.out = op.out,
              .partials = std::span(partials).first(tiling.total),
              .subtrees = std::span(tiling.subtrees).first(tiling.total)},
      stream);
}

void DivideByRows(const AllReduceTree& op, const Tiling& tiling, Communicator& group,
                  Stream& stream) {
  const std::int64_t rows = op.out.size(0);
  const std::int64_t n = op.out.size(1);
  const auto members = static_cast<std::size_t>(group.size());
  const auto self = static_cast<std::size_t>(group.rank());
  RowCounts rows_of{};
  for (std::size_t r = 0; r < members; ++r) {
    rows_of[r] = OwnedRange(rows, static_cast<int>(r), group.size()).size();
  }
  const std::int64_t mine = rows_of[self];
  const TensorView received =
      Matrix(op.workspace, static_cast<std::int64_t>(tiling.total) * mine, n);

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
      if (sending) send_rows[r] = rows_of[r];
      if (round < tiling.count_of[r]) {
        recv_rows[r] = mine;
        partials[tile + static_cast<std::size_t>(round)] = received.Rows(place, mine);
        place += mine;
      }
      tile += static_cast<std::size_t>(tiling.count_of[r]);
    }
    group.AllToAllRows(received.Rows(begin, place - begin), std::span(recv_rows).first(members),
                       op.partials.Rows(sent, 1).Reshaped({rows, n}),
                       std::span(send_rows).first(members), stream);
  }

  const TensorView out = op.out.Rows(OwnedRange(rows, group.rank(), group.size()).begin, mine);
  Run(SumTree{.out = out,
              .partials = std::span(partials).first(tiling.total),
              .subtrees = std::span(tiling.subtrees).first(tiling.total)},
      stream);
  group.AllGatherRows(op.out, out, std::span(rows_of).first(members), stream);
}

}  // namespace

std::int64_t AllReduceTreeBytes(int group_size, std::int64_t max_rows, std::int64_t n) {
  CHECK(1 <= group_size && group_size <= kChunks);
  if (group_size == 1) return 0;
  const std::int64_t whole = std::min(max_rows, kGatherWholeBytes / (n * SizeOf(DType::kF32)));
  const std::int64_t divided = (max_rows + group_size - 1) / group_size;
  return static_cast<std::int64_t>(Tiling(group_size).total) * std::max(whole, divided) * n *
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
    CopyBytes(op.out.raw(), op.partials.raw(), op.out.bytes());
    return;
  }
  const Tiling tiling(group.size());
  CHECK_EQ(op.partials.size(0), tiling.count_of[static_cast<std::size_t>(group.rank())]);
  if (GatheredWhole(rows, op.out.size(1))) {
    GatherWhole(op, tiling, group, stream);
  } else {
    DivideByRows(op, tiling, group, stream);
  }
}

}  // namespace jubal

#include "parallel/row_transfer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/run.h"

namespace jubal {
namespace {

std::int64_t RowBytes(const ConstTensorView& view, Device device) {
  CHECK(view.device() == device);
  CHECK(view.rank() >= 1 && view.dense());
  return view.row_stride() * SizeOf(view.dtype());
}

void CheckRows(const Communicator& group, std::span<const std::int64_t> rows) {
  CHECK_EQ(static_cast<int>(rows.size()), group.size());
  CHECK(std::all_of(rows.begin(), rows.end(), [](std::int64_t count) { return count >= 0; }));
}

}  // namespace

std::int64_t CheckAllGatherRows(const Communicator& group, const TensorView& gathered,
                                const ConstTensorView& mine, std::span<const std::int64_t> rows,
                                Device device) {
  CheckRows(group, rows);
  const std::int64_t row_bytes = RowBytes(gathered, device);
  CHECK(gathered.dtype() == mine.dtype());
  CHECK_EQ(row_bytes, RowBytes(mine, device));
  CHECK_GE(gathered.size(0), SumOf(rows));
  CHECK_GE(mine.size(0), rows[static_cast<std::size_t>(group.rank())]);
  return row_bytes;
}

std::int64_t CheckAllToAllRows(const Communicator& group, const TensorView& recv,
                               std::span<const std::int64_t> recv_rows, const ConstTensorView& send,
                               std::span<const std::int64_t> send_rows, Device device) {
  CheckRows(group, recv_rows);
  CheckRows(group, send_rows);
  const std::int64_t row_bytes = RowBytes(recv, device);
  CHECK(recv.dtype() == send.dtype());
  CHECK_EQ(row_bytes, RowBytes(send, device));
  CHECK_GE(recv.size(0), SumOf(recv_rows));
  CHECK_GE(send.size(0), SumOf(send_rows));
  const auto self = static_cast<std::size_t>(group.rank());
  CHECK_EQ(recv_rows[self], send_rows[self]);
  return row_bytes;
}

std::int64_t SumOf(std::span<const std::int64_t> rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

std::vector<ConstTensorView> ViewsOfRanks(ConstTensorView gathered,
                                          std::span<const std::int64_t> rows) {
  std::vector<ConstTensorView> views;
  std::int64_t first = 0;
  for (const std::int64_t count : rows) {
    views.push_back(gathered.Rows(first, count));
    first += count;
  }
  return views;
}

void CopyBytes(std::byte* destination, const std::byte* source, std::int64_t bytes) {
  if (destination == source || bytes == 0) return;
  std::memcpy(destination, source, static_cast<std::size_t>(bytes));
}

void CopyBytes(TensorView destination, ConstTensorView source, std::int64_t bytes, Stream& stream) {
  CHECK(destination.device() == source.device());
  if (destination.device() == Device::kCpu) {
    CopyBytes(destination.raw(), source.raw(), bytes);
  } else if (destination.raw() != source.raw()) {
    const Shape row{1, bytes};
    Run(Copy{.out = {destination.raw(), DType::kU8, row, destination.device()},
             .x = {source.raw(), DType::kU8, row, source.device()}},
        stream);
  }
}

}  // namespace jubal

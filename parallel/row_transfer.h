#ifndef JUBAL_PARALLEL_ROW_TRANSFER_H_
#define JUBAL_PARALLEL_ROW_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor.h"
#include "parallel/communicator.h"

namespace jubal {

/// What every communicator holds its callers to, the tensors' place included. Each returns the
/// bytes of one row.

std::int64_t CheckAllGatherRows(const Communicator& group, const TensorView& gathered,
                                const ConstTensorView& mine, std::span<const std::int64_t> rows,
                                Device device = Device::kCpu);

std::int64_t CheckAllToAllRows(const Communicator& group, const TensorView& recv,
                               std::span<const std::int64_t> recv_rows, const ConstTensorView& send,
                               std::span<const std::int64_t> send_rows,
                               Device device = Device::kCpu);

std::int64_t SumOf(std::span<const std::int64_t> rows);

/// The rows of each rank in what AllGatherRows has gathered.
std::vector<ConstTensorView> ViewsOfRanks(ConstTensorView gathered,
                                          std::span<const std::int64_t> rows);

/// Copies within one rank; nothing when source and destination are the same place.
void CopyBytes(std::byte* destination, const std::byte* source, std::int64_t bytes);

/// The same for tensors of the CPU or of the stream's GPU: the first `bytes` of dense tensors.
void CopyBytes(TensorView destination, ConstTensorView source, std::int64_t bytes, Stream& stream);

}  // namespace jubal

#endif  // JUBAL_PARALLEL_ROW_TRANSFER_H_

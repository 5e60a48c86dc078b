#ifndef JUBAL_PARALLEL_GATHER_VALUES_H_
#define JUBAL_PARALLEL_GATHER_VALUES_H_

#include <type_traits>
#include <vector>

#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "parallel/communicator.h"

namespace jubal {

/// One plain value of every member of the group, in order of rank. Collective.
template <class T>
std::vector<T> GatherValues(Communicator& group, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<std::size_t>(group.size()));
  const std::vector<std::int64_t> rows(all.size(), 1);
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  Stream stream;
  group.AllGatherRows(
      TensorView(reinterpret_cast<std::byte*>(all.data()), DType::kU8, {group.size(), kBytes}),
      ConstTensorView(reinterpret_cast<const std::byte*>(&mine), DType::kU8, {1, kBytes}), rows,
      stream);
  return all;
}

}  // namespace jubal

#endif  // JUBAL_PARALLEL_GATHER_VALUES_H_

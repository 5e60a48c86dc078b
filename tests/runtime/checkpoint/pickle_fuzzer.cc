#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/checkpoint/pickle.h"

namespace jubal {
namespace {

void CheckInside(const StoredArray& array, std::size_t file_size) {
  CHECK(array.offset <= file_size && array.length <= file_size - array.offset);
  CHECK(StoredLength(array.shape, array.dtype) == array.length);
  CHECK_LE(array.shape.size(), kMaxStoredRank);
}

}  // namespace
}  // namespace jubal

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace jubal;  // NOLINT: the entry point cannot be in the namespace
  try {
    const PickledWeight read = ReadPickle(std::as_bytes(std::span(data, size)), "input");
    CheckInside(read.weight, size);
    if (read.scales) CheckInside(*read.scales, size);
  } catch (const UserError& error) {
    CHECK(error.status() == ExitStatus::kBadData);
  }
  return 0;
}

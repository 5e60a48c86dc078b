#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace jubal;  // NOLINT: the entry point cannot be in the namespace
  try {
    const std::vector<SafetensorsEntry> entries =
        ReadSafetensorsHeader(std::as_bytes(std::span(data, size)), "input");
    std::size_t end = size;  // the tensors tile the file's tail
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
      CHECK_LE(entry->array.length, end);
      end -= entry->array.length;
      CHECK_EQ(entry->array.offset, end);
      CHECK(StoredLength(entry->array.shape, entry->array.dtype) == entry->array.length);
      CHECK_LE(entry->array.shape.size(), kMaxStoredRank);
    }
  } catch (const UserError& error) {
    CHECK(error.status() == ExitStatus::kBadData);
  }
  return 0;
}

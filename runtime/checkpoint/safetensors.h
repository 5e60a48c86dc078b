#ifndef JUBAL_RUNTIME_CHECKPOINT_SAFETENSORS_H_
#define JUBAL_RUNTIME_CHECKPOINT_SAFETENSORS_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/stored_tensor.h"

namespace jubal {

struct SafetensorsEntry {
  std::string name;
  StoredArray array;
};

/// Describes the tensors of one safetensors file, given all its bytes, by ascending offset. Reads
/// only the header.
///
/// Strict, as the format asks: every name once, dtypes F32, F16, BF16, F64, I8, U8, I32 and I64, at
/// most kMaxStoredRank dimensions, and data that the tensors cover exactly, without gap or overlap.
/// Anything else throws UserError (kBadData) that names `file_name` and the tensor or byte offset.
/// Memory is bounded by the header's length, which is capped at 100 MB.
std::vector<SafetensorsEntry> ReadSafetensorsHeader(std::span<const std::byte> file,
                                                    std::string_view file_name);

/// The same, as tensors that keep the file mapped.
std::vector<StoredTensor> ReadSafetensors(const std::shared_ptr<const MappedFile>& file);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_SAFETENSORS_H_

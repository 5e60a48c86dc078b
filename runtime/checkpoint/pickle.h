#ifndef JUBAL_RUNTIME_CHECKPOINT_PICKLE_H_
#define JUBAL_RUNTIME_CHECKPOINT_PICKLE_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "runtime/checkpoint/stored_tensor.h"

namespace jubal {

/// What one file of an xAI checkpoint holds.
struct PickledWeight {
  StoredArray weight;
  std::optional<StoredArray> scales;  // of a QuantizedWeight8bit
};

/// Describes the NumPy array, or the QuantizedWeight8bit of two arrays, that `file` holds: all
/// bytes of one Python pickle whose arrays are stored as protocols 3 and 4 store them (Python 3
/// saves them otherwise under protocols 2 and 5, by calls that are refused). A stack machine over a
/// closed set of values: it resolves the seven global names that such a file needs to constants and
/// can call nothing. It reads around the payloads and copies none of them; time and memory are
/// bounded by the number of opcodes read, whatever sizes the file claims.
///
/// Accepts C-order, little-endian arrays of f4, i1 and ml_dtypes.bfloat16 of at most kMaxStoredRank
/// dimensions. Anything else, trailing bytes included, throws UserError (kBadData) that names
/// `file_name` and the byte offset.
PickledWeight ReadPickle(std::span<const std::byte> file, std::string_view file_name);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_PICKLE_H_

#ifndef JUBAL_KERNELS_QUANTISE_WEIGHTS_H_
#define JUBAL_KERNELS_QUANTISE_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/packed_matrix.h"

namespace jubal {

/// A weight matrix [K, N] as a checkpoint stores it: where it lies and what its bytes mean. f32,
/// bf16 or int8, all values finite.
struct StoredMatrix {
  UnpackedMatrix matrix;
  WeightType type = WeightType::kF32;
  std::int64_t group_rows = 0;  // int8: rows that share a scale
  std::int64_t k = 0;
  std::int64_t n = 0;
};

/// Rounds some columns of a matrix to a type of fewer bits, ready for PackMatrix as the matrix
/// [K, columns] with `group_rows` rows per scale:
///
///   bf16   to nearest even, at most the largest finite value
///   int8   per column and group s = max|w| / 127, q = w / s within −127 … 127
///   int4   per column and group that s of −m/8, −m/8.5, −m/9, −m/9.5 and m/7 (m: the w of largest
///          magnitude) which leaves the least Σ (w − q · s)²; q = w / s within −8 … 7
///
/// w are the exact values, int8 · scale included. s is rounded to bf16 and may be negative; q is
/// w / s in f32, rounded to nearest even. A group of zeros has s = 0. Threads share the columns;
/// the result does not depend on their number.
///
/// data: [K, columns] bf16 or i8. scales: [⌈K / group_rows⌉, columns] bf16; null for bf16.
void QuantiseWeights(const StoredMatrix& source, Range columns, WeightType type,
                     std::int64_t group_rows, std::byte* data, std::byte* scales);

}  // namespace jubal

#endif  // JUBAL_KERNELS_QUANTISE_WEIGHTS_H_

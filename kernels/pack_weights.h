#ifndef JUBAL_KERNELS_PACK_WEIGHTS_H_
#define JUBAL_KERNELS_PACK_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

// PackMatrix where the bytes have come to a device piece by piece: a loader copies some rows of a
// checkpoint's matrix to a buffer there, has them packed, and goes on. Whatever the pieces, the
// packed bytes are PackMatrix's.

/// Part of a checkpoint's matrix: rows of [K, N], or of [N, K] when it is output-major, and some
/// columns of each.
struct UnpackedSlab {
  const std::byte* data = nullptr;  // the first element, unaligned; f32, bf16 or i8 as in
                                    // UnpackedMatrix, on the device that packs
  bool output_major = false;
  Range rows;                  // of the stored array
  Range columns;               // of the stored array
  std::int64_t row_bytes = 0;  // from one row to the next
};

/// The rows, and the columns, of the stored array that a share needs. A slab may have more rows,
/// and must have all of the columns.
Range StoredRows(const MatrixLayout& layout, bool output_major);
Range StoredColumns(const MatrixLayout& layout, bool output_major);

/// Where a slab that begins at row `begin` ends: after at most `max_rows` rows (at least 8), and so
/// that no step of the packed matrix is cut. `begin` is such a place itself.
std::int64_t SlabEnd(const MatrixLayout& layout, bool output_major, std::int64_t begin,
                     std::int64_t max_rows);

/// Packs what a slab holds of one expert's matrix (or the only one) into its place. Slabs that
/// together have the share's rows write all of its bytes.
struct PackWeights {
  TensorView data;          // [layout.WeightBytes()] u8, 64-byte aligned
  MatrixLayout layout;      // the share
  std::int64_t expert = 0;  // its number in the rank's stack
  UnpackedSlab source;
  TensorView broken;  // [1] i32: becomes 1 when a float is infinite or not a number; or none
};

void Check(const PackWeights& op);
void RunOnCpu(const PackWeights& op);

/// Packs scale groups of one expert's matrix (or the only one) into their places.
struct PackScales {
  TensorView scales;                  // [layout.ScaleBytes() / 4] f32
  MatrixLayout layout;                // the share, of integers
  std::int64_t expert = 0;            // its number in the rank's stack
  const std::byte* source = nullptr;  // [groups, N] bf16, unaligned, on the device that packs
  Range groups;                       // of the matrix, that `source` holds
  TensorView broken;                  // [1] i32, as in PackWeights; or none
};

void Check(const PackScales& op);
void RunOnCpu(const PackScales& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PACK_WEIGHTS_H_

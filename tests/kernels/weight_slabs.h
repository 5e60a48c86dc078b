#ifndef JUBAL_TESTS_KERNELS_WEIGHT_SLABS_H_
#define JUBAL_TESTS_KERNELS_WEIGHT_SLABS_H_

#include <vector>

#include "kernels/pack_weights.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {

inline constexpr WeightType kAllWeightTypes[] = {WeightType::kF32, WeightType::kBf16,
                                                 WeightType::kInt8, WeightType::kInt4};

/// A share of a random matrix, and how a loader would cut it: what tests of packing go through.
struct SlabCase {
  RandomMatrix matrix;
  MatrixLayout layout;
  bool output_major = false;
  std::int64_t max_rows = 0;
};

/// Calls visit(SlabCase) for shares of both splits, all types and both orientations.
template <class Visit>
void ForEachSlabCase(const Visit& visit) {
  for (const WeightType type : kAllWeightTypes) {
    for (const bool output_major : {false, true}) {
      for (const std::int64_t max_rows : {13, 100000}) {
        const RandomMatrix odd(type, 213, 150, 5, 3, output_major);
        visit(SlabCase{odd, odd.LayoutByOutput({0, 150}, {0, 3}), output_major, max_rows});
        visit(SlabCase{odd, odd.LayoutByOutput({70, 120}, {1, 2}), output_major, max_rows});
        visit(SlabCase{odd, odd.LayoutByOutput({70, 70}), output_major, max_rows});
        visit(SlabCase{odd, odd.LayoutByInput({0, 8}), output_major, max_rows});
        visit(SlabCase{odd, odd.LayoutByInput({2, 5}, {1, 3}), output_major, max_rows});
        // Scale groups end where chunks do; and a chunk has no rows.
        const RandomMatrix even(type, 64, 128, 8, 1, output_major);
        visit(SlabCase{even, even.LayoutByInput({3, 8}), output_major, max_rows});
        const RandomMatrix few(type, 5, 10, 1, 1, output_major);
        visit(SlabCase{few, few.LayoutByInput({0, 3}), output_major, max_rows});
      }
    }
  }
}

/// The slabs of an expert's matrix, which begins at `matrix`, last first. Every second one has
/// whole rows.
inline std::vector<UnpackedSlab> SlabsOf(const SlabCase& c, const std::byte* matrix) {
  const std::int64_t element = HasScales(c.layout.type) ? 1 : 4 / RowsPerStep(c.layout.type);
  const std::int64_t width = c.output_major ? c.layout.k : c.layout.n;
  const Range needed = StoredRows(c.layout, c.output_major);
  std::vector<UnpackedSlab> slabs;
  for (std::int64_t begin = needed.begin; begin < needed.end;) {
    const std::int64_t end = SlabEnd(c.layout, c.output_major, begin, c.max_rows);
    const Range columns =
        slabs.size() % 2 == 0 ? StoredColumns(c.layout, c.output_major) : Range{0, width};
    slabs.insert(slabs.begin(), {.data = matrix + (begin * width + columns.begin) * element,
                                 .output_major = c.output_major,
                                 .rows = {begin, end},
                                 .columns = columns,
                                 .row_bytes = width * element});
    begin = end;
  }
  return slabs;
}

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_WEIGHT_SLABS_H_

#ifndef JUBAL_KERNELS_MATMUL_TILES_H_
#define JUBAL_KERNELS_MATMUL_TILES_H_

#include <cstdint>

namespace jubal {

// The inner loops of the products: one table of functions per instruction-set tier, each in a
// translation unit of its own that is compiled for that tier. Such a unit includes nothing with
// inline functions: the linker could pick its copy for callers on lesser CPUs.

/// Steps of one block that a panel holds at most: 512 k of int8, 32 KiB of weights.
inline constexpr std::int64_t kPanelSteps = 128;
/// Rows of x that meet a panel at most.
inline constexpr std::int64_t kPanelRows = 16;
/// 128 · Σa is taken from a dot product with w + 128 to get the one with w.
inline constexpr std::int32_t kInt8Offset = 128;
/// Activations beside int8 weights are integers of magnitude up to this.
inline constexpr float kLargestActivation = 16383.0f;

/// A few steps of one 64-column block, all of one scale group, and the rows of x that they meet.
struct Int8Panel {
  const std::uint8_t* weights;  // [steps][64][4]
  std::int64_t steps;
  const std::int16_t* x;  // row r: x + r · x_stride, 4 · steps values
  std::int64_t x_stride;
  const std::int32_t* corrections;  // row r: 128 · Σa at corrections[r · corrections_stride]
  std::int64_t corrections_stride;
  std::int64_t rows;
  float* sums;               // [rows][64]: the flush is added to it
  std::int64_t columns;      // the first so many are wanted; the others may be left alone
  const std::uint8_t* next;  // weights that will be needed next, to prefetch
};

struct FloatPanel {
  const std::uint8_t* weights;  // f32 [k][64], bf16 [⌈k / 2⌉][64][2]
  std::int64_t k;
  const float* x;  // row r: x + r · x_stride, k values
  std::int64_t x_stride;
  std::int64_t rows;
  float* sums;  // [rows][64]: the accumulators, continued
  std::int64_t columns;
  const std::uint8_t* next;
};

struct MatmulTiles {
  /// The largest |x| as its bits, whose order is that of the magnitudes: NaN is above infinity.
  std::uint32_t (*largest_magnitude)(const float* x, std::int64_t count);
  /// a = rint(x / scale) to even, within ±16383; returns Σa. scale > 0, x finite.
  std::int32_t (*quantise)(const float* x, std::int64_t count, float scale, std::int16_t* a);
  void (*int8)(const Int8Panel& panel);
  void (*bf16)(const FloatPanel& panel);
  void (*f32)(const FloatPanel& panel);
};

extern const MatmulTiles kPortableMatmulTiles;
extern const MatmulTiles kAvx2MatmulTiles;  // x86-64 only

}  // namespace jubal

#endif  // JUBAL_KERNELS_MATMUL_TILES_H_

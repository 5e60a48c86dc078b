#ifndef JUBAL_KERNELS_MATMUL_TILES_H_
#define JUBAL_KERNELS_MATMUL_TILES_H_

#include <cstddef>
#include <cstdint>

namespace jubal {

// The inner loops of the products: one table of functions per instruction-set tier, each in a
// translation unit of its own that is compiled for that tier. Such a unit includes nothing with
// inline functions: the linker could pick its copy for callers on lesser CPUs.

/// k of integer weights that one panel covers at most, in steps of 4: 32 KiB of int8.
inline constexpr std::int64_t kPanelSteps = 128;
/// Rows of x that meet a panel at most.
inline constexpr std::int64_t kPanelRows = 64;
/// int8 weights are stored as w + 128, int4 as w + 8: that much times Σa is taken from a dot
/// product with them.
inline constexpr std::int32_t kInt8Offset = 128;
inline constexpr std::int32_t kInt4Offset = 8;
/// Activations beside integer weights are integers a of magnitude up to this.
inline constexpr float kLargestActivation = 16383.0f;
/// Bytes in which a tier keeps 4 consecutive activations, in an order of its own.
inline constexpr std::int64_t kActivationStepBytes = 8;

/// A few steps of one 64-column block of integers, and the rows of x that they meet. `steps` counts
/// 4 k, also for int4, whose 256 bytes hold two of them.
///
/// int8: the panel is part of one scale group, `group_steps` = `steps`, and sums[r][c] gets
///   Σ a · w added. int4: it is cut into groups of `group_steps`, an even number, and for each in
///   turn sums[r][c] gets (Σ a · w) · scales[group][c] added.
struct IntegerPanel {
  const std::uint8_t* weights;  // packed_matrix.h
  std::int64_t steps;
  std::int64_t group_steps;
  const std::byte* x;  // row r: x + r · x_stride bytes, kActivationStepBytes for each step
  std::int64_t x_stride;
  const std::int32_t* sums_of_x;  // row r, group g: Σa at [r · sums_of_x_stride + g]
  std::int64_t sums_of_x_stride;
  const float* scales;  // int4: [groups][64], rows scales_stride apart
  std::int64_t scales_stride;
  std::int64_t rows;         // 1 … kPanelRows
  float* sums;               // [rows][64]
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
  /// a = rint(x / scale) to even, within ±16383; returns Σa. scale > 0, x finite. Writes whole
  /// steps: what lacks is 0. All bytes 0 are activations of 0 in every tier.
  std::int32_t (*quantise)(const float* x, std::int64_t count, float scale, std::byte* a);
  void (*int8)(const IntegerPanel& panel);
  void (*int4)(const IntegerPanel& panel);
  void (*bf16)(const FloatPanel& panel);
  void (*f32)(const FloatPanel& panel);
  /// Passes over sums (matmul_passes.h).
  void (*add_scaled)(const float* flushes, const float* scales, std::int64_t rows, float* sums);
  void (*scale)(float factor, std::int64_t count, float* sums);
  void (*add)(const float* x, std::int64_t count, float* sums);
  void (*gelu_tanh)(const float* gate, const float* up, std::int64_t count, float* out);
  void (*silu)(const float* gate, const float* up, std::int64_t count, float* out);
  /// Run the instructions that the integer (float) tiles spend their time in on registers, so many
  /// times, and tell how many operations of the product that were: a multiply-add is two.
  std::int64_t (*integer_peak)(std::int64_t repetitions);
  std::int64_t (*float_peak)(std::int64_t repetitions);
};

extern const MatmulTiles kPortableMatmulTiles;
extern const MatmulTiles kAvx2MatmulTiles;    // x86-64 only
extern const MatmulTiles kAvx512MatmulTiles;  // x86-64 only

/// Of the active tier (cpu_isa.h).
const MatmulTiles& ActiveMatmulTiles();

}  // namespace jubal

#endif  // JUBAL_KERNELS_MATMUL_TILES_H_

#ifndef JUBAL_KERNELS_CPU_LIMITS_H_
#define JUBAL_KERNELS_CPU_LIMITS_H_

#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

// What this machine can do at most, measured on the threads that operations run on: benchmarks say
// how much of it they reach.

/// Bytes per second at which all threads together read `memory` once from end to end, each a share
/// of its own. It says something about memory only if the caches hold little of it.
double MeasureReadBandwidth(ConstTensorView memory);

/// Operations per second, a multiply-add counting as two, of all threads together running the
/// instructions that products with such weights spend their time in, on registers.
double MeasurePeak(WeightType type);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CPU_LIMITS_H_

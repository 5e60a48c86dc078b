#ifndef JUBAL_KERNELS_CUDA_GPU_LIMITS_H_
#define JUBAL_KERNELS_CUDA_GPU_LIMITS_H_

#include "kernels/packed_matrix.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

// What a GPU can do at most, as kernels/cpu_limits.h measures it of CPUs: benchmarks say how much
// of it operations reach. Each waits for the stream, and takes a little memory of the GPU
// meanwhile.

/// Bytes per second at which the GPU reads `memory` (a multiple of 16 bytes, aligned so) once from
/// end to end. It says something about memory only if the cache holds little of it.
double MeasureGpuReadBandwidth(ConstTensorView memory, Stream& stream);

/// Bytes per second, those read and those written, at which it copies the first half of `memory` to
/// the second.
double MeasureGpuCopyBandwidth(TensorView memory, Stream& stream);

/// Operations per second, a multiply-add counting as two, of the instructions that products with
/// such weights spend their time in, on registers: of f32 fused multiply-adds; of the others two
/// instructions of tensor cores (mma.sync), since x has two planes (matmul.h).
double MeasureGpuPeak(WeightType type, Stream& stream);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_GPU_LIMITS_H_

#ifndef JUBAL_KERNELS_GPU_LIMITS_H_
#define JUBAL_KERNELS_GPU_LIMITS_H_

#include "kernels/packed_matrix.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

/// How a GPU's limits are measured, for who does not link with CUDA: what kernels/cuda/gpu_limits.h
/// has, once a GPU is opened.
struct GpuMeasurements {
  double (*read_bandwidth)(ConstTensorView memory, Stream& stream) = nullptr;
  double (*peak)(WeightType type, Stream& stream) = nullptr;
};
inline GpuMeasurements gpu_measurements;

}  // namespace jubal

#endif  // JUBAL_KERNELS_GPU_LIMITS_H_

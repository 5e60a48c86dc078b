#ifndef JUBAL_KERNELS_HOST_DEVICE_H_
#define JUBAL_KERNELS_HOST_DEVICE_H_

/// Marks a function that kernels of a GPU call, too.
#ifdef __CUDACC__
#define JUBAL_HOST_DEVICE __host__ __device__
#else
#define JUBAL_HOST_DEVICE
#endif

#endif  // JUBAL_KERNELS_HOST_DEVICE_H_

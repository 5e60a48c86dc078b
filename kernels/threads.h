#ifndef JUBAL_KERNELS_THREADS_H_
#define JUBAL_KERNELS_THREADS_H_

namespace jubal {

/// OpenMP's numbers; 1 and 0 without it.
int MostThreads();
int ThisThread();

}  // namespace jubal

#endif  // JUBAL_KERNELS_THREADS_H_

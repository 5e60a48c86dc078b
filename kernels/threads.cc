#include "kernels/threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace jubal {

int MostThreads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

int ThisThread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace jubal

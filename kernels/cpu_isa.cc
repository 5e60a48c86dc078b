#include "kernels/cpu_isa.h"

#include <atomic>

#include "kernels/check.h"

namespace jubal {
namespace {

#if defined(__x86_64__)
bool HasAvx512() {
#ifdef JUBAL_EMULATED_AVX512
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}
#endif

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return HasAvx512() ? CpuIsa::kAvx512 : CpuIsa::kAvx2;
  }
#endif
  return CpuIsa::kPortable;
}

std::atomic<CpuIsa>& Active() {
  static std::atomic<CpuIsa> active{BestCpuIsa()};
  return active;
}

}  // namespace

std::string_view NameOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  CheckFailed(__FILE__, __LINE__, "unknown instruction set");
}

CpuIsa BestCpuIsa() {
  static const CpuIsa best = DetectCpuIsa();
  return best;
}

CpuIsa ActiveCpuIsa() { return Active().load(std::memory_order_relaxed); }

void ForceCpuIsa(CpuIsa isa) {
  CHECK(isa <= BestCpuIsa());
  Active().store(isa, std::memory_order_relaxed);
}

}  // namespace jubal

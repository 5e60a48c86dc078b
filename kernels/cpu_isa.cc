#include "kernels/cpu_isa.h"

#include <atomic>

#include "kernels/check.h"

namespace jubal {
namespace {

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return CpuIsa::kAvx2;
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

#ifndef JUBAL_KERNELS_CPU_ISA_H_
#define JUBAL_KERNELS_CPU_ISA_H_

#include <cstdint>
#include <string_view>

namespace jubal {

/// Instruction-set tiers of the CPU forms, lowest first: each contains the ones before it.
enum class CpuIsa : std::uint8_t {
  kPortable,
  kAvx2,    // with FMA and F16C
  kAvx512,  // F, BW, DQ, VL and VNNI
};

inline constexpr CpuIsa kAllCpuIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

std::string_view NameOf(CpuIsa isa);

/// The highest tier that this CPU and its operating system support.
CpuIsa BestCpuIsa();

/// The tier that operations run on: the best one, unless another was forced.
CpuIsa ActiveCpuIsa();

/// Runs operations on `isa`, which must not lie above the best tier. For making all ranks agree,
/// and for tests; not while an operation is running.
void ForceCpuIsa(CpuIsa isa);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CPU_ISA_H_

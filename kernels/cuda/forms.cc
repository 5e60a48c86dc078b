#include "kernels/cuda/forms.h"

#include "kernels/run.h"

namespace jubal {
namespace {

template <class... Ops>
void Install() {
  ((gpu_form<Ops> = [](const Ops& op, Stream& stream) { RunOnGpu(op, stream); }), ...);
}

}  // namespace

void InstallGpuForms() { Install<Copy, RmsNorm, Zero>(); }

}  // namespace jubal

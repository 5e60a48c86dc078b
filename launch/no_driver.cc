#include "launch/gpu_driver.h"

namespace jubal {

GpuDriver ProgramGpuDriver() { return {}; }

}  // namespace jubal

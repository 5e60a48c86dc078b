#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace jubal {

void CheckFailed(const char* file, int line, const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, message.c_str());
  std::abort();
}

}  // namespace jubal

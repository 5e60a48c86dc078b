#include "launch/private_directory.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

#include <fmt/format.h>

#include "kernels/error.h"

namespace jubal {

namespace fs = std::filesystem;

PrivateDirectory::PrivateDirectory(const fs::path& parent) {
  std::string name = (parent / "jubal-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) {
    throw UserError(ExitStatus::kIoError, fmt::format("no directory can be made in {}: {}",
                                                      parent.string(), std::strerror(errno)));
  }
  path_ = name;
}

PrivateDirectory::~PrivateDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

fs::path RuntimeParent() {
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && access(runtime, W_OK | X_OK) == 0) return runtime;
  return fs::temp_directory_path();
}

fs::path SharedMemoryParent() {
  return access("/dev/shm", W_OK | X_OK) == 0 ? fs::path("/dev/shm") : RuntimeParent();
}

}  // namespace jubal

#ifndef JUBAL_LAUNCH_PRIVATE_DIRECTORY_H_
#define JUBAL_LAUNCH_PRIVATE_DIRECTORY_H_

#include <filesystem>

namespace jubal {

/// A new directory that no other user can enter, removed with all it holds when this is destroyed.
class PrivateDirectory {
 public:
  /// Makes PARENT/jubal-XXXXXX. Throws UserError(kIoError) naming `parent`.
  explicit PrivateDirectory(const std::filesystem::path& parent);
  ~PrivateDirectory();
  PrivateDirectory(const PrivateDirectory&) = delete;
  PrivateDirectory& operator=(const PrivateDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Where this user's sockets belong: XDG_RUNTIME_DIR, else the directory for temporary files.
std::filesystem::path RuntimeParent();

/// Where files are memory: /dev/shm, or RuntimeParent() on a host without it.
std::filesystem::path SharedMemoryParent();

}  // namespace jubal

#endif  // JUBAL_LAUNCH_PRIVATE_DIRECTORY_H_

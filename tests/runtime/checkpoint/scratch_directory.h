#ifndef JUBAL_TESTS_RUNTIME_CHECKPOINT_SCRATCH_DIRECTORY_H_
#define JUBAL_TESTS_RUNTIME_CHECKPOINT_SCRATCH_DIRECTORY_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace jubal {

/// A directory of a test's own, removed with all it holds.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string path = (std::filesystem::path(testing::TempDir()) / "jubal-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) ADD_FAILURE() << "no directory under " << path;
    path_ = path;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// Makes file `name`, and the directories it needs.
  std::filesystem::path Write(const std::string& name, const std::string& content) const {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_CHECKPOINT_SCRATCH_DIRECTORY_H_

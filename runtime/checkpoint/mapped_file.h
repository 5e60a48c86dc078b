#ifndef JUBAL_RUNTIME_CHECKPOINT_MAPPED_FILE_H_
#define JUBAL_RUNTIME_CHECKPOINT_MAPPED_FILE_H_

#include <cstddef>
#include <filesystem>
#include <span>

namespace jubal {

/// A file's bytes, mapped read-only and shared with every process that maps it. Keeps no file
/// descriptor open, so a checkpoint's hundreds of files may be mapped at once. The file must not
/// shrink while it is mapped.
class MappedFile {
 public:
  /// Throws UserError (kNoInput) when `path` is missing, unreadable or no regular file.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  /// Valid while this object lives, also when it is moved. Empty for an empty file.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Starts reading [offset, offset + length) from disk and returns at once. The range must lie
  /// inside the file, here and in DoneWith. Both are advice: pages may come or go regardless.
  void WillNeed(std::size_t offset, std::size_t length) const;
  /// Takes the pages that hold the range out of this process and marks them as the first that the
  /// kernel may reclaim. The bytes stay readable; reading them again may go to the disk again.
  void DoneWith(std::size_t offset, std::size_t length) const;

  /// Asks for the file's pages to be read and mapped 2 MB at a time, where the file system can.
  void PreferHugePages() const;
  /// Maps the pages that hold the range, reading those that are not in memory: the bytes can be
  /// used at once. Several threads read faster than one. False if the file cannot be read.
  [[nodiscard]] bool Populate(std::size_t offset, std::size_t length) const;

 private:
  /// Returns madvise's errno, or 0.
  int Advise(std::size_t offset, std::size_t length, int advice) const;

  std::filesystem::path path_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_MAPPED_FILE_H_

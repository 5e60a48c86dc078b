#ifndef JUBAL_RUNTIME_CHECKPOINT_CHECKPOINT_H_
#define JUBAL_RUNTIME_CHECKPOINT_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/stored_tensor.h"

namespace jubal {

enum class CheckpointFormat { kCkpt0, kSafetensors };

/// The tensors of a model directory, described but not read. Their files stay mapped while this
/// object or a copy of one of its tensors lives.
class Checkpoint {
 public:
  /// Reads the first of these that DIRECTORY holds; other files are ignored:
  ///   1. ckpt-0/tensorNNNNN_000, xAI's pickles, numbered from 0 without a gap;
  ///   2. tensorNNNNN_000 in DIRECTORY itself, the same;
  ///   3. model*.safetensors: every file is a shard, and a tensor lies in one of them;
  ///   4. *.safetensors, the same.
  /// File tensor00003_000 holds tensor "tensor00003_000" and, when quantised,
  /// "tensor00003_000/scales".
  /// Throws UserError: kNoInput when there are no weights or a file is missing or unreadable,
  /// kBadData when a file is malformed or a tensor comes twice.
  static Checkpoint Open(const std::filesystem::path& directory);

  CheckpointFormat format() const { return format_; }
  const std::filesystem::path& directory() const { return directory_; }
  /// nullptr when absent. Valid while this object, or the one it is moved to, lives.
  const StoredTensor* Find(std::string_view name) const;
  /// By file name, then by offset in the file.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  std::uint64_t bytes() const { return bytes_; }  // of all tensors

 private:
  Checkpoint(CheckpointFormat format, std::filesystem::path directory,
             std::vector<StoredTensor> tensors);

  CheckpointFormat format_;
  std::filesystem::path directory_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;  // of tensors_
  std::uint64_t bytes_ = 0;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_CHECKPOINT_CHECKPOINT_H_

#include "runtime/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "kernels/error.h"
#include "runtime/checkpoint/pickle.h"
#include "runtime/checkpoint/safetensors.h"

namespace jubal {
namespace {

namespace fs = std::filesystem;

/// The two numbers of a name like tensor00003_000.
struct Ckpt0Name {
  std::size_t number;
  std::size_t host;
};

std::optional<std::size_t> ParseDigits(std::string_view text) {
  std::size_t number = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9') return std::nullopt;
    number = number * 10 + static_cast<std::size_t>(digit - '0');
  }
  return number;
}

std::optional<Ckpt0Name> ParseCkpt0Name(std::string_view name) {
  if (name.size() != 15 || !name.starts_with("tensor") || name[11] != '_') return std::nullopt;
  const std::optional<std::size_t> number = ParseDigits(name.substr(6, 5));
  const std::optional<std::size_t> host = ParseDigits(name.substr(12, 3));
  if (!number || !host) return std::nullopt;
  return Ckpt0Name{*number, *host};
}

std::string Ckpt0FileName(std::size_t number) { return fmt::format("tensor{:05}_000", number); }

struct WeightFiles {
  std::vector<fs::path> ckpt0;
  std::vector<fs::path> safetensors;
};

/// The weight files right in `directory`, sorted by name.
WeightFiles List(const fs::path& directory) {
  WeightFiles files;
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path& path = entries->path();
    if (ParseCkpt0Name(path.filename().string())) {
      files.ckpt0.push_back(path);
    } else if (path.extension() == ".safetensors") {
      files.safetensors.push_back(path);
    }
  }
  if (error) {
    throw UserError(ExitStatus::kNoInput, fmt::format("{}: the model directory cannot be read: {}",
                                                      directory.string(), error.message()));
  }
  std::sort(files.ckpt0.begin(), files.ckpt0.end());
  std::sort(files.safetensors.begin(), files.safetensors.end());
  return files;
}

/// Requires the files, sorted by name, to be numbers 0, 1, 2 ... of a single host.
void CheckNumbering(const std::vector<fs::path>& files) {
  for (const fs::path& path : files) {
    if (ParseCkpt0Name(path.filename().string())->host != 0) {
      throw UserError(ExitStatus::kBadData,
                      fmt::format("{}: the checkpoint is sharded over hosts, but only single-host "
                                  "checkpoints (files tensorNNNNN_000) can be read",
                                  path.string()));
    }
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string expected = Ckpt0FileName(i);
    if (files[i].filename() != expected) {
      throw UserError(
          ExitStatus::kNoInput,
          fmt::format("{}: missing, although {} is there",
                      (files[i].parent_path() / expected).string(), files[i].filename().string()));
    }
  }
}

StoredTensor Stored(std::string name, StoredArray array,
                    const std::shared_ptr<const MappedFile>& file) {
  return {.name = std::move(name),
          .dtype = array.dtype,
          .shape = std::move(array.shape),
          .file = file,
          .offset = array.offset};
}

std::vector<StoredTensor> ReadCkpt0(const std::vector<fs::path>& files) {
  CheckNumbering(files);
  std::vector<StoredTensor> tensors;
  for (const fs::path& path : files) {
    const auto file = std::make_shared<const MappedFile>(path);
    PickledWeight weight = ReadPickle(file->bytes(), path.string());
    const std::string name = path.filename().string();
    tensors.push_back(Stored(name, std::move(weight.weight), file));
    if (weight.scales) tensors.push_back(Stored(name + "/scales", *weight.scales, file));
  }
  return tensors;
}

/// Hugging Face names a model's shards model*.safetensors; where there are such files, others
/// beside them hold something else (adapters, test vectors).
std::vector<fs::path> ModelShards(std::vector<fs::path> files) {
  const auto is_model = [](const fs::path& path) {
    return path.filename().string().starts_with("model");
  };
  if (std::any_of(files.begin(), files.end(), is_model)) {
    std::erase_if(files, std::not_fn(is_model));
  }
  return files;
}

std::vector<StoredTensor> ReadShards(const std::vector<fs::path>& files) {
  std::vector<StoredTensor> tensors;
  for (const fs::path& path : files) {
    std::vector<StoredTensor> shard = ReadSafetensors(std::make_shared<const MappedFile>(path));
    std::move(shard.begin(), shard.end(), std::back_inserter(tensors));
  }
  return tensors;
}

}  // namespace

Checkpoint Checkpoint::Open(const std::filesystem::path& directory) {
  const fs::path inner = directory / "ckpt-0";
  std::error_code error;  // an unreadable ckpt-0 is reported by List
  if (fs::is_directory(inner, error)) {
    if (const WeightFiles files = List(inner); !files.ckpt0.empty()) {
      return Checkpoint(CheckpointFormat::kCkpt0, directory, ReadCkpt0(files.ckpt0));
    }
  }
  WeightFiles files = List(directory);
  if (!files.ckpt0.empty()) {
    return Checkpoint(CheckpointFormat::kCkpt0, directory, ReadCkpt0(files.ckpt0));
  }
  if (!files.safetensors.empty()) {
    return Checkpoint(CheckpointFormat::kSafetensors, directory,
                      ReadShards(ModelShards(std::move(files.safetensors))));
  }
  throw UserError(ExitStatus::kNoInput,
                  fmt::format("{}: has no weights: neither weights.jubalpack, "
                              "ckpt-0/tensor00000_000, tensor00000_000 nor *.safetensors",
                              directory.string()));
}

Checkpoint::Checkpoint(CheckpointFormat format, std::filesystem::path directory,
                       std::vector<StoredTensor> tensors)
    : format_(format), directory_(std::move(directory)), tensors_(std::move(tensors)) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const StoredTensor& tensor = tensors_[i];
    const auto [place, is_new] = index_.emplace(tensor.name, i);
    if (!is_new) {
      throw UserError(ExitStatus::kBadData,
                      fmt::format("{}: tensor {} is also in {}", tensor.file->path().string(),
                                  Quoted(tensor.name),
                                  tensors_[place->second].file->path().filename().string()));
    }
    bytes_ += tensor.bytes().size();
  }
}

const StoredTensor* Checkpoint::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace jubal

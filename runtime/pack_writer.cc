#include "runtime/pack_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/error.h"
#include "kernels/quantise_weights.h"
#include "runtime/checkpoint/pack_file.h"
#include "runtime/weight_loader.h"

namespace jubal {
namespace {

namespace fs = std::filesystem;

/// Columns of a by-output matrix that are packed at a time take so much, by-input ones all their
/// columns: their chunks lie apart.
constexpr std::int64_t kPieceBytes = 64 << 20;

/// A file under a temporary name in the directory where it will be.
class NewFile {
 public:
  explicit NewFile(fs::path path)
      : path_(std::move(path)),
        partial_(path_.string() + ".partial"),
        descriptor_{open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)} {
    if (descriptor_.number < 0) Fail("made");
    if (flock(descriptor_.number, LOCK_EX | LOCK_NB) != 0 || !IsNamed()) {
      throw UserError(ExitStatus::kUsage,
                      fmt::format("{} is being written by another jubal pack", partial_.string()));
    }
    if (ftruncate(descriptor_.number, 0) != 0) Fail("emptied");  // an earlier one was interrupted
  }
  ~NewFile() {
    if (!partial_.empty()) unlink(partial_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  /// Throws UserError (kConfig) when the disk lacks the space.
  void Reserve(std::uint64_t bytes) {
    struct statvfs disk {};
    const bool known = fstatvfs(descriptor_.number, &disk) == 0;
    const std::uint64_t left = std::uint64_t{disk.f_bavail} * disk.f_frsize;
    if ((known && left < bytes) ||
        (fallocate(descriptor_.number, 0, 0, static_cast<off_t>(bytes)) != 0 && errno == ENOSPC)) {
      throw UserError(ExitStatus::kConfig,
                      fmt::format("{} needs {} MB, but its disk has {} MB left", path_.string(),
                                  (bytes + 999'999) / 1'000'000, left / 1'000'000));
    }
  }

  void Write(std::uint64_t offset, std::span<const std::byte> bytes) {
    const auto begin = static_cast<off_t>(offset);
    const auto size = static_cast<off_t>(bytes.size());
    auto place = begin;
    while (!bytes.empty()) {
      const ssize_t written = pwrite(descriptor_.number, bytes.data(), bytes.size(), place);
      if (written < 0 && errno != EINTR) Fail("written");
      if (written <= 0) continue;
      place += written;
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    // The disk begins now, so that little is left to wait for in the end.
    sync_file_range(descriptor_.number, begin, size, SYNC_FILE_RANGE_WRITE);
  }

  void Sync() {
    if (fsync(descriptor_.number) != 0) Fail("written");
  }
  /// Gives the file its name.
  void Publish() {
    if (rename(partial_.c_str(), path_.c_str()) != 0) Fail("renamed");
    partial_.clear();
  }

 private:
  struct Descriptor {
    int number;

    ~Descriptor() {
      if (number >= 0) close(number);
    }
  };

  /// Whether the locked file still has the temporary name: another process may have published it
  /// between our opening and locking it.
  bool IsNamed() const {
    struct stat locked {};
    struct stat named {};
    return fstat(descriptor_.number, &locked) == 0 && stat(partial_.c_str(), &named) == 0 &&
           locked.st_dev == named.st_dev && locked.st_ino == named.st_ino;
  }

  [[noreturn]] void Fail(const char* done) const {
    const int error = errno;
    throw UserError(ExitStatus::kIoError, fmt::format("{} cannot be {}: {}", partial_.string(),
                                                      done, std::strerror(error)));
  }

  fs::path path_;
  fs::path partial_;  // empty once published
  const Descriptor descriptor_;
};

void SyncDirectory(const fs::path& directory) {
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);
  close(descriptor);
}

/// The columns of one piece: all of a by-input matrix's.
std::int64_t PieceColumns(const MatrixLayout& whole) {
  if (whole.split == Split::kByInput) return whole.stored_columns();
  return std::max<std::int64_t>(1, kPieceBytes / whole.BlockBytes(0)) * kBlockColumns;
}

std::vector<PackedWeight> ListPacked(const ModelSource& source, std::optional<WeightType> type) {
  std::vector<PackedWeight> list;
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    const WeightFormat format = PackedFormat(spec, source.format(i), type);
    PackedWeight weight{.name = spec.Name(),
                        .type = format.type,
                        .k = spec.k,
                        .n = spec.n,
                        .experts = spec.expert_stack ? source.model().experts : 1,
                        .group_rows = format.group_rows,
                        .data = {},
                        .scales = {}};
    if (spec.n == 0) {
      weight.data.bytes = static_cast<std::uint64_t>(spec.k * SizeOf(DType::kF32));
    } else {
      const MatrixLayout whole = WholeLayoutOf(spec, format, source.model());
      weight.data.bytes = static_cast<std::uint64_t>(whole.WeightBytes());
      weight.scales.bytes = static_cast<std::uint64_t>(whole.ScaleBytes());
    }
    list.push_back(std::move(weight));
  }
  return list;
}

/// One expert's bytes in a tensor that may hold a stack of them.
struct ExpertBytes {
  const StoredTensor* tensor;
  std::size_t offset;  // in the file
  std::size_t bytes;

  std::span<const std::byte> get() const { return tensor->file->bytes().subspan(offset, bytes); }
};

ExpertBytes BytesOf(const WeightSpec& spec, const WeightFiles& files, std::int64_t expert) {
  const bool stacked = spec.expert_stack && files.tensors.size() == 1;
  const StoredTensor* tensor = files.tensors[stacked ? 0 : static_cast<std::size_t>(expert)];
  const auto bytes =
      static_cast<std::size_t>(spec.k * std::max<std::int64_t>(spec.n, 1) * SizeOf(tensor->dtype));
  return {tensor, tensor->offset + (stacked ? static_cast<std::size_t>(expert) * bytes : 0), bytes};
}

/// Packs weights, rounding those that change their type, and writes them.
class PackWriter {
 public:
  PackWriter(const ModelSource& source, NewFile& file, std::uint64_t data_begin, std::int64_t total,
             const std::function<void(std::int64_t, std::int64_t)>& progress)
      : source_(source), file_(file), data_begin_(data_begin), total_(total), progress_(progress) {}

  /// Writes weight number i of the list and sets its checksums.
  void WriteWeight(std::size_t i, PackedWeight& weight) {
    const WeightSpec& spec = source_.weights()[i];
    if (spec.n == 0) {
      std::vector<float> values(static_cast<std::size_t>(spec.k));
      LoadVector(*source_.files(i).tensors.front(),
                 TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kF32, {spec.k}));
      WriteFloats(weight.data, values);
      return;
    }
    const MatrixLayout whole =
        WholeLayoutOf(spec, {weight.type, weight.group_rows}, source_.model());
    scales_.assign(static_cast<std::size_t>(whole.ScaleBytes() / 4), 0.0f);
    offset_ = data_begin_ + weight.data.offset;
    PackChecksum checksum;
    for (std::int64_t expert = 0; expert < weight.experts; ++expert) {
      const WeightFiles& files = source_.files(i);
      const ExpertBytes bytes = BytesOf(spec, files, expert);
      Prefetch(i, expert + 1);
      if (bytes.tensor->dtype != DType::kI8)
        CheckFinite(*bytes.tensor, bytes.get(), bytes.tensor->dtype);
      if (files.scales != nullptr && expert == 0) {
        CheckFinite(*files.scales, files.scales->bytes(), files.scales->dtype);
      }
      WriteExpert(i, expert, whole, checksum);
      bytes.tensor->file->DoneWith(bytes.offset, bytes.bytes);
    }
    weight.data.checksum = checksum.value();
    if (HasScales(weight.type)) WriteFloats(weight.scales, scales_);
  }

 private:
  /// Starts reading that expert, or what comes after the last.
  void Prefetch(std::size_t i, std::int64_t expert) const {
    const WeightSpec* spec = &source_.weights()[i];
    if (!spec->expert_stack || expert == source_.model().experts) {
      expert = 0;
      if (++i == source_.weights().size()) return;
      spec = &source_.weights()[i];
    }
    const ExpertBytes next = BytesOf(*spec, source_.files(i), expert);
    next.tensor->file->WillNeed(next.offset, next.bytes);
  }

  /// Piece by piece, in the order of the file.
  void WriteExpert(std::size_t i, std::int64_t expert, const MatrixLayout& whole,
                   PackChecksum& checksum) {
    const WeightSpec& spec = source_.weights()[i];
    const WeightFormat& format = source_.format(i);
    const UnpackedMatrix unpacked = source_.files(i).Matrix(spec, format, expert);
    const std::int64_t step = PieceColumns(whole);
    for (std::int64_t column = 0; column < spec.n; column += step) {
      MatrixLayout piece = whole;
      piece.experts = {0, 1};
      piece.columns = {column, std::min(spec.n, column + step)};
      const std::span<std::byte> data = First(packed_, piece.WeightBytes());
      piece_scales_.resize(static_cast<std::size_t>(piece.ScaleBytes() / 4));
      if (format == WeightFormat{whole.type, whole.group_rows}) {
        PackMatrix(piece, 0, unpacked, data.data(), piece_scales_.data());
      } else {
        PackRounded({unpacked, format.type, format.group_rows, spec.k, spec.n}, piece, data.data());
      }
      PlaceScales(whole, piece, expert);
      checksum.Add(data);
      file_.Write(offset_, data);
      offset_ += data.size();
      Done(data.size());
    }
  }

  void PackRounded(const StoredMatrix& stored, const MatrixLayout& piece, std::byte* data) {
    // The columns alone make a matrix of their own, and whole blocks keep their places.
    MatrixLayout alone = piece;
    alone.n = piece.columns.size();
    alone.columns = {0, alone.n};
    const bool integers = HasScales(piece.type);
    const std::int64_t groups = integers ? DivideUp(piece.k, piece.group_rows) : 0;
    const std::span<std::byte> rounded = First(rounded_, piece.k * alone.n * (integers ? 1 : 2));
    rounded_scales_.resize(static_cast<std::size_t>(groups * alone.n * 2));
    std::byte* const scales = integers ? rounded_scales_.data() : nullptr;
    QuantiseWeights(stored, piece.columns, piece.type, piece.group_rows, rounded.data(), scales);
    PackMatrix(alone, 0, {.data = rounded.data(), .output_major = false, .scales = scales}, data,
               piece_scales_.data());
  }

  /// Puts a piece's scales, [chunk][group][column], among the weight's.
  void PlaceScales(const MatrixLayout& whole, const MatrixLayout& piece, std::int64_t expert) {
    if (!HasScales(whole.type)) return;
    const auto width = static_cast<std::size_t>(piece.stored_columns());
    const std::size_t groups = piece_scales_.size() / width;
    float* to = scales_.data() + expert * whole.ExpertScales() + piece.columns.begin;
    for (std::size_t group = 0; group < groups; ++group) {
      std::copy_n(piece_scales_.data() + group * width, width, to);
      to += whole.stored_columns();
    }
  }

  void WriteFloats(PackSection& section, const std::vector<float>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    CHECK_EQ(bytes.size(), section.bytes);
    PackChecksum checksum;
    checksum.Add(bytes);
    section.checksum = checksum.value();
    file_.Write(data_begin_ + section.offset, bytes);
    Done(bytes.size());
  }

  void Done(std::size_t bytes) {
    done_ += static_cast<std::int64_t>(bytes);
    if (done_ < total_) progress_(done_, total_);
  }

  /// The first bytes of a buffer that grows when it has to.
  static std::span<std::byte> First(std::vector<std::byte>& buffer, std::int64_t bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    if (buffer.size() < size) buffer.resize(size);
    return std::span(buffer).first(size);
  }

  const ModelSource& source_;
  NewFile& file_;
  const std::uint64_t data_begin_;
  const std::int64_t total_;
  const std::function<void(std::int64_t, std::int64_t)>& progress_;
  std::uint64_t offset_ = 0;  // of what is written next
  std::int64_t done_ = 0;
  std::vector<float> scales_;      // of the weight
  std::vector<std::byte> packed_;  // of a piece, as the rest
  std::vector<float> piece_scales_;
  std::vector<std::byte> rounded_;
  std::vector<std::byte> rounded_scales_;
};

/// Copies a file that belongs to the model, if it has it.
void CopyFile(const fs::path& from, const fs::path& to) {
  std::error_code error;
  const bool there = fs::exists(to, error);
  const bool here = fs::exists(from, error);
  if (!there && !here) return;
  const auto same = [&] {
    const MappedFile a(from);
    const MappedFile b(to);
    return std::ranges::equal(a.bytes(), b.bytes());
  };
  if (there) {
    if (here && same()) return;
    throw UserError(ExitStatus::kUsage,
                    fmt::format("{} is there already and is no copy of {}: remove it, or give "
                                "another directory",
                                to.string(), from.string()));
  }
  const MappedFile source(from);
  NewFile copy(to);
  copy.Write(0, source.bytes());
  copy.Sync();
  copy.Publish();
}

}  // namespace

WeightFormat PackedFormat(const WeightSpec& spec, const WeightFormat& stored,
                          std::optional<WeightType> type) {
  constexpr std::int64_t kInt4GroupRows = 64;
  if (spec.n == 0) return {WeightType::kF32, 0};
  if (!type || spec.role == WeightRole::kRouter) return stored;
  // Embed reads no int4.
  const bool vocabulary = spec.sharding == Sharding::kByVocabulary;
  if (vocabulary && type == WeightType::kInt4) type = WeightType::kInt8;
  if (RowsPerStep(*type) <= RowsPerStep(stored.type)) return stored;
  if (type == WeightType::kInt4) return {WeightType::kInt4, kInt4GroupRows};
  if (type == WeightType::kBf16) return {WeightType::kBf16, 0};
  const bool by_input =
      spec.sharding == Sharding::kByHeadChunk || spec.sharding == Sharding::kByExpertInput;
  return {WeightType::kInt8, by_input ? DivideUp(spec.k, kChunks) : spec.k};
}

void WritePack(const ModelSource& source, std::optional<WeightType> type, const fs::path& directory,
               const std::function<void(std::int64_t done, std::int64_t total)>& progress) {
  if (source.packed()) {
    throw UserError(ExitStatus::kUsage, fmt::format("{} is packed already: pack the checkpoint "
                                                    "that it came from",
                                                    source.name()));
  }
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    throw UserError(ExitStatus::kIoError,
                    fmt::format("{} cannot be made: {}", directory.string(), error.message()));
  }
  const fs::path path = directory / kPackFileName;
  NewFile file(path);
  if (fs::exists(path, error)) {
    throw UserError(
        ExitStatus::kUsage,
        fmt::format("{} is there already: remove it, or give another directory", path.string()));
  }
  for (const char* const name : {"config.json", "tokenizer.model"}) {
    CopyFile(source.checkpoint().directory() / name, directory / name);
  }

  std::vector<PackedWeight> weights = ListPacked(source, type);
  const std::uint64_t data_bytes = PlacePackSections(weights);
  const std::uint64_t data_begin = PackHeader(weights, data_bytes).size();
  const auto total = static_cast<std::int64_t>(
      std::accumulate(weights.begin(), weights.end(), std::uint64_t{0},
                      [](std::uint64_t sum, const PackedWeight& weight) {
                        return sum + weight.data.bytes + weight.scales.bytes;
                      }));
  file.Reserve(data_begin + data_bytes);
  PackWriter writer(source, file, data_begin, total, progress);
  for (std::size_t i = 0; i < weights.size(); ++i) writer.WriteWeight(i, weights[i]);
  const std::string header = PackHeader(weights, data_bytes);
  CHECK_EQ(header.size(), data_begin);
  file.Write(0, std::as_bytes(std::span(header)));
  file.Sync();
  file.Publish();
  SyncDirectory(directory);
  progress(total, total);
}

}  // namespace jubal

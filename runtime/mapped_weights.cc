#include "runtime/mapped_weights.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/threads.h"
#include "parallel/gather_values.h"
#include "runtime/memory_plan.h"
#include "runtime/weight_upload.h"

namespace jubal {
namespace {

// What a thread reads at a time.
constexpr std::int64_t kWindow = 8 << 20;
// Threads that read on one node, at least: one waits for each window, and disks want more.
constexpr int kReaders = 4;

/// Bytes that this process has had from disks.
std::int64_t BytesFromDisk() {
  constexpr std::int64_t kBlock = 512;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_inblock * kBlock;
}

[[noreturn]] void ReadingFailed(const MappedFile& file) {
  throw UserError(ExitStatus::kIoError,
                  fmt::format("{}: reading failed half-way", file.path().string()));
}

std::int64_t Sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

/// Windows of a file, taken by threads in turn.
class Reading {
 public:
  Reading(const MappedFile& file, const std::vector<Range>& ranges) : file_(file) {
    for (const Range& range : ranges) {
      total_ += range.size();
      for (std::int64_t begin = range.begin; begin < range.end; begin += kWindow) {
        windows_.push_back({begin, std::min(range.end, begin + kWindow)});
      }
    }
  }

  /// Takes windows until none is left. `progress` gets the bytes done so far.
  template <class Progress>
  void Work(Progress progress) {
    for (std::size_t i = next_++; i < windows_.size() && !failed_; i = next_++) {
      const Range window = windows_[i];
      if (!file_.Populate(static_cast<std::size_t>(window.begin),
                          static_cast<std::size_t>(window.size()))) {
        failed_ = true;
        return;
      }
      progress(done_ += window.size());
    }
  }

  std::int64_t total() const { return total_; }
  bool failed() const { return failed_; }

 private:
  const MappedFile& file_;
  std::vector<Range> windows_;
  std::int64_t total_ = 0;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<std::int64_t> done_ = 0;
  std::atomic<bool> failed_ = false;
};

/// Has all of the ranges mapped and in memory.
void Read(const MappedFile& file, const std::vector<Range>& ranges, Communicator& node,
          const LoadProgress& progress) {
  const std::int64_t before = BytesFromDisk();
  Reading reading(file, ranges);
  const std::int64_t node_total = Sum(GatherValues(node, reading.total()));
  {
    std::vector<std::jthread> others;
    const int threads = std::max(MostThreads(), (kReaders + node.size() - 1) / node.size());
    for (int i = 1; i < threads; ++i) {
      others.emplace_back([&reading] { reading.Work([](std::int64_t) {}); });
    }
    reading.Work([&](std::int64_t done) {
      // The ranks have parts of about one size, and read at about one pace.
      if (progress && done < reading.total()) {
        progress({.done = std::min(done * node.size(), node_total - 1), .total = node_total});
      }
    });
  }
  if (reading.failed()) ReadingFailed(file);
  const std::int64_t from_disk = Sum(GatherValues(node, BytesFromDisk() - before));
  if (progress) {
    progress({.done = node_total,
              .total = node_total,
              .from_disk = std::min(from_disk, node_total)});  // neighbours come along
  }
}

/// Bytes of a file, and where in the memory of the weights they belong.
struct FilePiece {
  std::int64_t file = 0;
  Range memory;
};

/// out ← the bytes that belong into the window, from pieces in the order of memory. Threads share
/// the work.
void ReadPieces(const MappedFile& file, const std::vector<FilePiece>& pieces, Range window,
                std::byte* out) {
  constexpr std::int64_t kTask = 1 << 20;
  std::vector<FilePiece> tasks;
  auto piece = std::partition_point(pieces.begin(), pieces.end(), [&](const FilePiece& p) {
    return p.memory.end <= window.begin;
  });
  for (; piece != pieces.end() && piece->memory.begin < window.end; ++piece) {
    const Range part{std::max(piece->memory.begin, window.begin),
                     std::min(piece->memory.end, window.end)};
    for (std::int64_t begin = part.begin; begin < part.end; begin += kTask) {
      tasks.push_back({.file = piece->file + begin - piece->memory.begin,
                       .memory = {begin, std::min(part.end, begin + kTask)}});
    }
  }
  std::atomic<bool> failed = false;
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const FilePiece& task = tasks[i];
    const auto offset = static_cast<std::size_t>(task.file);
    const auto bytes = static_cast<std::size_t>(task.memory.size());
    if (!file.Populate(offset, bytes)) {
      failed = true;
      continue;
    }
    std::memcpy(out + task.memory.begin - window.begin, file.bytes().data() + offset, bytes);
    file.DoneWith(offset, bytes);
  }
  if (failed) ReadingFailed(file);
}

}  // namespace

Weights MapWeights(const ModelSource& source, const Mesh& mesh, const LoadProgress& progress) {
  const ModelDescription& model = source.model();
  const Pack& pack = source.pack();
  Weights weights;
  weights.layers.resize(static_cast<std::size_t>(model.layers));
  weights.mapping = pack.file;
  std::vector<Range> ranges;  // of the file
  const auto add = [&ranges](const PackSection& section, Range part) {
    const auto offset = static_cast<std::int64_t>(section.offset);
    ranges.push_back({offset + part.begin, offset + part.end});
  };
  // What is small, or lies in many small pieces: the ranks of a node divide it.
  const auto add_share = [&](const PackSection& section) {
    add(section,
        OwnedRange(static_cast<std::int64_t>(section.bytes), mesh.node->rank(), mesh.node->size()));
  };
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    const PackedWeight& packed = pack.weights[i];
    const std::byte* const data = pack.bytes(packed.data).data();
    if (spec.n == 0) {
      VectorOf(weights, spec) = ConstTensorView(data, DType::kF32, Shape{spec.k});
      add_share(packed.data);
      continue;
    }
    const MatrixLayout whole = WholeLayoutOf(spec, source.format(i), model);
    const MatrixLayout part = LayoutOf(spec, source.format(i), model, mesh.plan, mesh.seat);
    const float* const scales =
        HasScales(whole.type) ? reinterpret_cast<const float*>(pack.bytes(packed.scales).data())
                              : nullptr;
    MatrixOf(weights, spec) = PartOf({.layout = whole, .data = data, .scales = scales}, part);
    for (const Range& range : DataRanges(whole, part)) add(packed.data, range);
    add_share(packed.scales);
  }
  if (model.tied_output) weights.output = weights.embedding;
  Read(*pack.file, ranges, *mesh.node, progress);
  return weights;
}

Weights UploadPack(const ModelSource& source, const Mesh& mesh, Arena& arena, Gpu& gpu,
                   const LoadProgress& progress) {
  const ModelDescription& model = source.model();
  const Pack& pack = source.pack();
  Weights weights;
  const std::vector<WeightMemory> memory =
      TakeWeights(source, mesh.plan, mesh.seat, arena, weights);
  std::byte* const begin = memory.front().data.raw();  // of the arena
  std::vector<FilePiece> pieces;
  const auto add = [&](const PackSection& section, const std::vector<Range>& ranges,
                       TensorView destination) {
    std::int64_t place = destination.raw() - begin;
    for (const Range& range : ranges) {
      pieces.push_back({.file = static_cast<std::int64_t>(section.offset) + range.begin,
                        .memory = {place, place + range.size()}});
      place += range.size();
    }
  };
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    const PackedWeight& packed = pack.weights[i];
    if (spec.n == 0) {
      add(packed.data, {{0, memory[i].data.bytes()}}, memory[i].data);
      continue;
    }
    const MatrixLayout whole = WholeLayoutOf(spec, source.format(i), model);
    const MatrixLayout& part = MatrixOf(weights, spec).layout;
    add(packed.data, DataRanges(whole, part), memory[i].data);
    if (!memory[i].scales.empty()) {
      add(packed.scales, ScaleRanges(whole, part), memory[i].scales);
    }
  }

  const std::int64_t total = arena.memory().bytes();
  const std::int64_t node_total = Sum(GatherValues(*mesh.node, total));
  WeightUpload upload(gpu, std::min(total, kUploadBytes), /*slabs=*/false);
  for (std::int64_t first = 0; first < total; first += kUploadBytes) {
    const Range window{first, std::min(first + kUploadBytes, total)};
    const TensorView to(begin + window.begin, DType::kU8, Shape{window.size()}, Device::kCuda);
    upload.Send(to, [&](std::byte* host) { ReadPieces(*pack.file, pieces, window, host); });
    // The ranks have parts of about one size, and read at about one pace.
    if (progress && window.end < total) {
      progress(
          {.done = std::min(window.end * mesh.node->size(), node_total - 1), .total = node_total});
    }
  }
  upload.Finish();
  mesh.node->Barrier();
  if (progress) progress({.done = node_total, .total = node_total});
  return weights;
}

}  // namespace jubal

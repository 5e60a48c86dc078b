#include "runtime/weight_loader.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/copy.h"
#include "kernels/pack_weights.h"
#include "kernels/run.h"
#include "runtime/memory_plan.h"
#include "runtime/weight_upload.h"

namespace jubal {
namespace {

/// One tensor of a weight: what is read, packed and then dropped at a time.
struct Piece {
  std::size_t weight = 0;  // index into the source's list
  const StoredTensor* tensor = nullptr;
  std::int64_t first_expert = 0;  // experts that the tensor holds
  std::int64_t num_experts = 1;
};

std::vector<Piece> PiecesInFileOrder(const ModelSource& source) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightFiles& files = source.files(i);
    const std::int64_t stack =
        source.weights()[i].expert_stack && files.tensors.size() == 1 ? source.model().experts : 1;
    for (std::size_t j = 0; j < files.tensors.size(); ++j) {
      pieces.push_back({i, files.tensors[j], static_cast<std::int64_t>(j), stack});
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    if (a.tensor->file != b.tensor->file) {
      return a.tensor->file->path() < b.tensor->file->path();
    }
    return a.tensor->offset < b.tensor->offset;
  });
  return pieces;
}

/// This rank's share of reading ahead: the node's ranks divide the tensor's bytes.
void ReadAhead(const StoredTensor& tensor, const Communicator& node) {
  const auto bytes = static_cast<std::int64_t>(tensor.bytes().size());
  const Range share = OwnedRange(bytes, node.rank(), node.size());
  tensor.file->WillNeed(tensor.offset + static_cast<std::size_t>(share.begin),
                        static_cast<std::size_t>(share.size()));
}

float FromBf16(const std::byte* source) {
  std::uint16_t half = 0;
  std::memcpy(&half, source, sizeof half);
  const std::uint32_t word = std::uint32_t{half} << 16;
  float value = 0.0f;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// One expert's share of a stack's memory.
std::span<const std::byte> ExpertOf(ConstTensorView stack, std::int64_t expert,
                                    std::int64_t bytes) {
  return {stack.raw() + expert * bytes, static_cast<std::size_t>(bytes)};
}

/// Packs on the CPU, straight to where the weights belong.
class CpuPacker {
 public:
  explicit CpuPacker(const ModelSource& source) : source_(source) {}

  void PackVector(const Piece& piece, const WeightMemory& to) {
    LoadVector(*piece.tensor, to.data);
  }

  void PackExpert(const Piece& piece, const MatrixLayout& layout, std::int64_t expert,
                  const WeightMemory& to) {
    const WeightFiles& files = source_.files(piece.weight);
    const std::int64_t local = expert - layout.experts.begin;
    float* scales = to.scales.empty() ? nullptr : to.scales.data<float>();
    PackMatrix(layout, local,
               files.Matrix(source_.weights()[piece.weight], source_.format(piece.weight), expert),
               to.data.raw(), scales);
    if (scales != nullptr) {
      CheckFinite(*files.scales, ExpertOf(to.scales, local, layout.ExpertScales() * 4),
                  DType::kF32);
    } else {
      CheckFinite(*piece.tensor, ExpertOf(to.data, local, layout.ExpertBytes()),
                  piece.tensor->dtype);
    }
  }

  void Finish() {}

 private:
  const ModelSource& source_;
};

/// The rows and columns of a stored matrix that a share needs, and how it comes to a GPU.
struct WeightSlabs {
  WeightSlabs(const MatrixLayout& layout, bool output_major)
      : rows(StoredRows(layout, output_major)),
        columns(StoredColumns(layout, output_major)),
        element_bytes(HasScales(layout.type) ? 1 : 4 / RowsPerStep(layout.type)),
        row_bytes(columns.size() * element_bytes),
        pitch((output_major ? layout.k : layout.n) * element_bytes),
        most_rows(std::max(kLeastRows, kUploadBytes / std::max<std::int64_t>(1, row_bytes))) {}

  std::int64_t largest() const { return std::min(most_rows, rows.size()) * row_bytes; }

  static constexpr std::int64_t kLeastRows = 8;  // what SlabEnd asks for

  Range rows;
  Range columns;
  std::int64_t element_bytes;
  std::int64_t row_bytes;  // of the columns
  std::int64_t pitch;      // from one row to the next in the file
  std::int64_t most_rows;  // in one slab
};

/// The scale groups that a share needs of a stored matrix [groups, N] bf16. Requires scales.
struct ScaleSlabs {
  explicit ScaleSlabs(const MatrixLayout& layout)
      : group_bytes(layout.n * SizeOf(DType::kBf16)),
        most(std::max<std::int64_t>(1, kUploadBytes / group_bytes)) {
    const Range rows = layout.InputRows();
    if (rows.empty()) return;
    groups = {rows.begin / layout.group_rows, (rows.end - 1) / layout.group_rows + 1};
  }

  std::int64_t largest() const { return std::min(most, groups.size()) * group_bytes; }

  Range groups;
  std::int64_t group_bytes;
  std::int64_t most;  // in one slab
};

/// Copies rows of `row_bytes`, `pitch` apart, to where they lie one after the other.
void GatherBytes(std::byte* to, const std::byte* from, std::int64_t rows, std::int64_t row_bytes,
                 std::int64_t pitch) {
#pragma omp parallel for
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * row_bytes, from + r * pitch, static_cast<std::size_t>(row_bytes));
  }
}

/// Flags of GpuPacker.
std::int64_t FlagsOf(const ModelSource& source) {
  return 2 * static_cast<std::int64_t>(source.weights().size());
}

/// Packs on a GPU: the file's bytes go there in slabs of rows.
class GpuPacker {
 public:
  GpuPacker(const ModelSource& source, const LoadingBuffers& sizes, Stream& stream)
      : source_(source),
        stream_(stream),
        flags_(stream.gpu(), sizes.flag_bytes),
        broken_(flags_.Take(DType::kI32, Shape{FlagsOf(source)})),
        upload_(stream.gpu(), sizes.piece_bytes, /*slabs=*/true) {}

  void PackVector(const Piece& piece, const WeightMemory& to) {
    upload_.Send(to.data, [&](std::byte* host) {
      LoadVector(*piece.tensor, {host, DType::kF32, to.data.shape()});
    });
  }

  void PackExpert(const Piece& piece, const MatrixLayout& layout, std::int64_t expert,
                  const WeightMemory& to) {
    const UnpackedMatrix from =
        source_.files(piece.weight)
            .Matrix(source_.weights()[piece.weight], source_.format(piece.weight), expert);
    const std::int64_t local = expert - layout.experts.begin;
    const WeightSlabs slabs(layout, from.output_major);
    for (std::int64_t begin = slabs.rows.begin; begin < slabs.rows.end;) {
      const std::int64_t most = std::min(slabs.most_rows, slabs.rows.end - begin);
      const Range rows{begin, most == slabs.rows.end - begin
                                  ? slabs.rows.end
                                  : SlabEnd(layout, from.output_major, begin, most)};
      begin = rows.end;
      const std::byte* const first =
          from.data + rows.begin * slabs.pitch + slabs.columns.begin * slabs.element_bytes;
      upload_.Send(
          rows.size() * slabs.row_bytes,
          [&](std::byte* host) {
            GatherBytes(host, first, rows.size(), slabs.row_bytes, slabs.pitch);
          },
          [&](const std::byte* slab, Stream& stream) {
            Run(PackWeights{.data = to.data,
                            .layout = layout,
                            .expert = local,
                            .source = {.data = slab,
                                       .output_major = from.output_major,
                                       .rows = rows,
                                       .columns = slabs.columns,
                                       .row_bytes = slabs.row_bytes},
                            .broken = WeightFlag(piece.weight)},
                stream);
          });
    }
    if (to.scales.empty()) return;
    const ScaleSlabs groups(layout);
    for (std::int64_t begin = groups.groups.begin; begin < groups.groups.end;
         begin += groups.most) {
      const Range part{begin, std::min(groups.groups.end, begin + groups.most)};
      const std::byte* const first = from.scales + part.begin * groups.group_bytes;
      upload_.Send(
          part.size() * groups.group_bytes,
          [&](std::byte* host) {
            GatherBytes(host, first, part.size(), groups.group_bytes, groups.group_bytes);
          },
          [&](const std::byte* slab, Stream& stream) {
            Run(PackScales{.scales = to.scales,
                           .layout = layout,
                           .expert = local,
                           .source = slab,
                           .groups = part,
                           .broken = ScalesFlag(piece.weight)},
                stream);
          });
    }
  }

  /// Waits until all is packed. Throws if a value was not finite.
  void Finish() {
    upload_.Finish();
    std::vector<std::int32_t> flags(static_cast<std::size_t>(broken_.size(0)));
    Run(Copy{.out = {reinterpret_cast<std::byte*>(flags.data()), DType::kI32, broken_.shape()},
             .x = broken_},
        stream_);
    stream_.Synchronize();
    for (std::size_t i = 0; i < source_.weights().size(); ++i) {
      const WeightFiles& files = source_.files(i);
      if (flags[2 * i] != 0) {
        for (const StoredTensor* tensor : files.tensors) {
          CheckFinite(*tensor, tensor->bytes(), tensor->dtype);
        }
      }
      if (flags[2 * i + 1] != 0) {
        CheckFinite(*files.scales, files.scales->bytes(), files.scales->dtype);
      }
    }
    CHECK(std::all_of(flags.begin(), flags.end(), [](std::int32_t flag) { return flag == 0; }));
  }

 private:
  // One for each weight's values and one for its scales: the GPU has met one that is not finite.
  TensorView WeightFlag(std::size_t weight) const {
    return broken_.Rows(2 * static_cast<std::int64_t>(weight), 1);
  }
  TensorView ScalesFlag(std::size_t weight) const {
    return broken_.Rows(2 * static_cast<std::int64_t>(weight) + 1, 1);
  }

  const ModelSource& source_;
  Stream& stream_;
  Arena flags_;
  TensorView broken_;
  WeightUpload upload_;
};

/// Walks through the files, all ranks of the node together, and packs what is this rank's.
template <class Packer>
void PackAll(const ModelSource& source, const Mesh& mesh, Weights& weights,
             const std::vector<WeightMemory>& memory, Packer&& packer,
             const LoadProgress& progress) {
  const std::vector<Piece> pieces = PiecesInFileOrder(source);
  const std::int64_t total = std::accumulate(
      pieces.begin(), pieces.end(), std::int64_t{0}, [](std::int64_t sum, const Piece& piece) {
        return sum + static_cast<std::int64_t>(piece.tensor->bytes().size());
      });
  std::int64_t done = 0;
  if (!pieces.empty()) ReadAhead(*pieces.front().tensor, *mesh.node);
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const Piece& piece = pieces[p];
    if (p + 1 < pieces.size()) ReadAhead(*pieces[p + 1].tensor, *mesh.node);
    const WeightSpec& spec = source.weights()[piece.weight];
    const WeightMemory& to = memory[piece.weight];
    if (spec.n == 0) {
      packer.PackVector(piece, to);
    } else {
      const MatrixLayout& layout = MatrixOf(weights, spec).layout;
      for (std::int64_t expert = piece.first_expert;
           expert < piece.first_expert + piece.num_experts; ++expert) {
        if (expert < layout.experts.begin || expert >= layout.experts.end) continue;
        packer.PackExpert(piece, layout, expert, to);
      }
    }
    mesh.node->Barrier();  // nobody needs these pages any more
    piece.tensor->file->DoneWith(piece.tensor->offset, piece.tensor->bytes().size());
    done += static_cast<std::int64_t>(piece.tensor->bytes().size());
    if (p + 1 == pieces.size()) packer.Finish();
    if (progress) progress({.done = done, .total = total});
  }
}

}  // namespace

void LoadVector(const StoredTensor& tensor, TensorView out) {
  CheckFinite(tensor, tensor.bytes(), tensor.dtype);
  const std::byte* source = tensor.bytes().data();
  auto* values = out.data<float>();
  for (std::int64_t i = 0; i < out.size(0); ++i) {
    if (tensor.dtype == DType::kF32) {
      std::memcpy(values + i, source + i * 4, 4);
    } else {
      values[i] = FromBf16(source + i * 2);
    }
  }
}

LoadingBuffers LoadingBuffersOf(const ModelSource& source, const ParallelPlan& plan,
                                const Seat& seat) {
  LoadingBuffers buffers{.piece_bytes = 0, .flag_bytes = ArenaBytes(FlagsOf(source) * 4)};
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    if (spec.n == 0) {
      buffers.piece_bytes = std::max(buffers.piece_bytes, spec.k * SizeOf(DType::kF32));
      continue;
    }
    const MatrixLayout layout = LayoutOf(spec, source.format(i), source.model(), plan, seat);
    buffers.piece_bytes =
        std::max(buffers.piece_bytes, WeightSlabs(layout, source.files(i).output_major).largest());
    if (HasScales(layout.type)) {
      buffers.piece_bytes = std::max(buffers.piece_bytes, ScaleSlabs(layout).largest());
    }
  }
  buffers.piece_bytes = ArenaBytes(buffers.piece_bytes);
  return buffers;
}

Weights LoadWeights(const ModelSource& source, const Mesh& mesh, Arena& arena, Stream& stream,
                    const LoadProgress& progress) {
  Weights weights;
  const std::vector<WeightMemory> memory =
      TakeWeights(source, mesh.plan, mesh.seat, arena, weights);
  if (stream.device() == Device::kCpu) {
    PackAll(source, mesh, weights, memory, CpuPacker(source), progress);
  } else {
    const LoadingBuffers buffers = LoadingBuffersOf(source, mesh.plan, mesh.seat);
    PackAll(source, mesh, weights, memory, GpuPacker(source, buffers, stream), progress);
  }
  return weights;
}

}  // namespace jubal

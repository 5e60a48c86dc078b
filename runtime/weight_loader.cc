#include "runtime/weight_loader.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "runtime/memory_plan.h"

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

Weights LoadWeights(const ModelSource& source, const Mesh& mesh, Arena& arena,
                    const LoadProgress& progress) {
  Weights weights;
  const std::vector<WeightMemory> memory =
      TakeWeights(source, mesh.plan, mesh.seat, arena, weights);

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
    const WeightMemory& destination = memory[piece.weight];
    if (spec.n == 0) {
      LoadVector(*piece.tensor, destination.data);
    } else {
      const MatrixLayout& layout = MatrixOf(weights, spec).layout;
      float* scales = destination.scales.empty() ? nullptr : destination.scales.data<float>();
      for (std::int64_t expert = piece.first_expert;
           expert < piece.first_expert + piece.num_experts; ++expert) {
        if (expert < layout.experts.begin || expert >= layout.experts.end) continue;
        const std::int64_t local = expert - layout.experts.begin;
        PackMatrix(layout, local,
                   source.files(piece.weight).Matrix(spec, source.format(piece.weight), expert),
                   destination.data.raw(), scales);
        if (scales != nullptr) {
          CheckFinite(*source.files(piece.weight).scales,
                      ExpertOf(destination.scales, local, layout.ExpertScales() * 4), DType::kF32);
        } else {
          CheckFinite(*piece.tensor, ExpertOf(destination.data, local, layout.ExpertBytes()),
                      piece.tensor->dtype);
        }
      }
    }
    mesh.node->Barrier();  // nobody needs these pages any more
    piece.tensor->file->DoneWith(piece.tensor->offset, piece.tensor->bytes().size());
    done += static_cast<std::int64_t>(piece.tensor->bytes().size());
    if (progress) progress({.done = done, .total = total});
  }
  return weights;
}

}  // namespace jubal

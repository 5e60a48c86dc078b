#include "kernels/pack_weights.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/pack_weights_forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;

// A block packs so many steps of one 64-column block: enough for a line of an output-major source
// to be used up while it is in the cache.
constexpr std::int64_t kTileSteps = 64;

__global__ void __launch_bounds__(kThreads)
    PackSlab(SlabOfChunk slab, std::int64_t first_block, std::int64_t step_tiles,
             std::int32_t* broken_flag) {
  const std::int64_t block = blockIdx.x / step_tiles;
  const std::int64_t tile = slab.steps.begin + blockIdx.x % step_tiles * kTileSteps;
  const std::int64_t column = (first_block + block) * kBlockColumns + threadIdx.x % kBlockColumns;
  if (column < slab.columns.begin || column >= slab.columns.end) return;
  std::byte* const out = slab.data + block * slab.block_bytes + threadIdx.x % kBlockColumns * 4;
  bool broken = false;
  for (std::int64_t i = threadIdx.x / kBlockColumns; i < kTileSteps;
       i += kThreads / kBlockColumns) {
    const std::int64_t step = tile + i;
    if (step >= slab.steps.end) break;
    *reinterpret_cast<std::uint32_t*>(out + step * kBlockStepBytes) =
        PackedWord(slab, step, column, broken);
  }
  if (broken && broken_flag != nullptr) *broken_flag = 1;
}

__global__ void __launch_bounds__(kThreads)
    WidenScales(ScalesOfChunk of, std::int32_t* broken_flag) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= of.groups * of.stored) return;
  bool broken = false;
  of.scales[i] = __uint_as_float(PackedScale(of, i / of.stored, i % of.stored, broken));
  if (broken && broken_flag != nullptr) *broken_flag = 1;
}

std::int32_t* FlagOf(TensorView broken) {
  return broken.empty() ? nullptr : DeviceData<std::int32_t>(broken);
}

}  // namespace

void RunOnGpu(const PackWeights& op, Stream& stream) {
  CHECK(op.data.device() == Device::kCuda);
  ForEachChunk(op, [&](const SlabOfChunk& slab) {
    const std::int64_t step_tiles = DivideUp(slab.steps.size(), kTileSteps);
    Launch(stream, PackSlab, Extent(slab.Blocks() * step_tiles), kThreads, 0, slab,
           slab.FirstBlock(), step_tiles, FlagOf(op.broken));
  });
}

void RunOnGpu(const PackScales& op, Stream& stream) {
  CHECK(op.scales.device() == Device::kCuda);
  ForEachChunk(op, [&](const ScalesOfChunk& of) {
    Launch(stream, WidenScales, Extent(DivideUp(of.groups * of.stored, kThreads)), kThreads, 0, of,
           FlagOf(op.broken));
  });
}

}  // namespace jubal

#include "kernels/embed.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"

namespace jubal {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4 * kThreads;  // elements of a token that one block looks up

struct Arguments {
  float* out;
  std::int64_t out_stride;
  const std::int32_t* token_ids;
  float multiplier;
  const std::byte* data;
  std::int64_t block_bytes;
  const float* scales;
  std::int64_t scales_stride;  // from one group's scales to the next's
  std::int64_t group_rows;
  std::int64_t group_steps;
  std::int64_t hidden;
  std::int64_t vocabulary;
  std::int64_t first_column;  // of those owned
  std::int64_t end_column;
  std::int64_t first_block;
};

/// Element k of the column that starts at `column` in its block, in multiples of its scale.
template <WeightType type>
__device__ float Stored(const Arguments& a, const std::byte* column, std::int64_t k) {
  const auto step = [&](std::int64_t index) { return column + index * kBlockColumns * 4; };
  if constexpr (type == WeightType::kF32) {
    return *reinterpret_cast<const float*>(step(k));
  } else if constexpr (type == WeightType::kBf16) {
    const unsigned bits = reinterpret_cast<const std::uint16_t*>(step(k / 2))[k % 2];
    return __uint_as_float(bits << 16);
  } else {
    const std::int64_t row = k % a.group_rows;
    const std::byte* at = step(k / a.group_rows * a.group_steps + row / 4) + row % 4;
    return static_cast<float>(static_cast<int>(*at) - 128);
  }
}

template <WeightType type>
__global__ void __launch_bounds__(kThreads) LookUp(Arguments a) {
  const std::int64_t t = blockIdx.x;
  const std::int64_t id = a.token_ids[t];
  if (id < 0 || id >= a.vocabulary) __trap();
  const bool owned = a.first_column <= id && id < a.end_column;
  const std::int64_t block = id / kBlockColumns - a.first_block;
  const std::int64_t place = id % kBlockColumns;
  const std::int64_t begin = std::int64_t{blockIdx.y} * kRows;
  const std::int64_t end = min(a.hidden, begin + kRows);
  for (std::int64_t k = begin + threadIdx.x; k < end; k += kThreads) {
    float value = 0.0f;
    if (owned) {
      value = Stored<type>(a, a.data + block * a.block_bytes + place * 4, k);
      if (type == WeightType::kInt8) {
        value *= a.scales[k / a.group_rows * a.scales_stride + block * kBlockColumns + place];
      }
      value = a.multiplier * value;
    }
    a.out[t * a.out_stride + k] = value;
  }
}

}  // namespace

void RunOnGpu(const Embed& op, Stream& stream) {
  const MatrixLayout& layout = op.table.layout;
  CHECK(op.table.device == Device::kCuda);
  const auto look_up = layout.type == WeightType::kF32    ? LookUp<WeightType::kF32>
                       : layout.type == WeightType::kBf16 ? LookUp<WeightType::kBf16>
                                                          : LookUp<WeightType::kInt8>;
  Launch(stream, look_up, dim3(Extent(op.token_ids.size(0)), Extent(DivideUp(layout.k, kRows))),
         kThreads, 0,
         {.out = DeviceData<float>(op.out),
          .out_stride = op.out.row_stride(),
          .token_ids = DeviceData<std::int32_t>(op.token_ids),
          .multiplier = op.multiplier,
          .data = op.table.data,
          .block_bytes = layout.BlockBytes(0),
          .scales = op.table.scales,
          .scales_stride = op.table.strides().stored_columns(),
          .group_rows = layout.group_rows,
          .group_steps = (layout.group_rows + 3) / 4,
          .hidden = layout.k,
          .vocabulary = layout.n,
          .first_column = layout.columns.begin,
          .end_column = layout.columns.end,
          .first_block = layout.blocks().begin});
}

}  // namespace jubal

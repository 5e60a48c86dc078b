#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/paged_attention.h"

namespace jubal {
namespace {

struct Arguments {
  std::byte* pages;
  std::int64_t page_bytes;
  std::int64_t head_bytes;
  std::int64_t num_pages;
  std::int64_t head_dim;
  const float* k;
  std::int64_t k_stride;
  const float* v;
  std::int64_t v_stride;
  const std::int32_t* positions;
  const std::int32_t* sequences;
  const std::int32_t* page_table;
  std::int64_t page_table_stride;
  std::int64_t num_sequences;
  std::int64_t max_pages;
};

/// A block has a token and a head, its first warp the key and its second the value.
template <class Element>
__global__ void __launch_bounds__(2 * kWarp) Store(Arguments a) {
  const std::int64_t t = blockIdx.x;
  const std::int64_t head = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool is_value = threadIdx.x >= kWarp;
  const std::int64_t position = a.positions[t];
  const std::int64_t sequence = a.sequences[t];
  if (position < 0 || position >= a.max_pages * kPageTokens) __trap();
  if (sequence < 0 || sequence >= a.num_sequences) __trap();
  const std::int64_t page = a.page_table[sequence * a.page_table_stride + position / kPageTokens];
  if (page < 0 || page >= a.num_pages) __trap();
  const std::int64_t slot = position % kPageTokens;

  const float* x = is_value ? a.v + t * a.v_stride : a.k + t * a.k_stride;
  x += head * a.head_dim;
  const std::int64_t matrix = a.head_dim * kPageTokens;
  auto* const of_head =
      reinterpret_cast<Element*>(a.pages + page * a.page_bytes + head * a.head_bytes);
  Element* out = is_value ? of_head + matrix + slot * a.head_dim : of_head + slot;
  const std::int64_t stride = is_value ? 1 : kPageTokens;
  if constexpr (std::is_same_v<Element, float>) {
    for (std::int64_t d = lane; d < a.head_dim; d += kWarp) out[d * stride] = x[d];
  } else {
    constexpr float kMaxLevel = sizeof(Element) == 1 ? 127.0f : 32767.0f;
    float largest = 0.0f;
    for (std::int64_t d = lane; d < a.head_dim; d += kWarp) largest = fmaxf(largest, fabsf(x[d]));
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
    }
    const float scale = largest / kMaxLevel;
    for (std::int64_t d = lane; d < a.head_dim; d += kWarp) {
      const float level = rintf(x[d] / scale);
      const bool usable = fabsf(level) <= kMaxLevel;  // false for 0 / 0 and infinities
      out[d * stride] = static_cast<Element>(usable ? level : 0.0f);
    }
    auto* const scales = reinterpret_cast<float*>(of_head + 2 * matrix);
    if (lane == 0) scales[(is_value ? kPageTokens : 0) + slot] = scale;
  }
}

}  // namespace

void RunOnGpu(const StoreKv& op, Stream& stream) {
  const KvLayer& layer = op.pages;
  CHECK(layer.device == Device::kCuda);
  const auto store = layer.type == KvType::kF32     ? Store<float>
                     : layer.type == KvType::kInt16 ? Store<std::int16_t>
                                                    : Store<std::int8_t>;
  Launch(stream, store, dim3(Extent(op.k.size(0)), Extent(layer.heads)), 2 * kWarp, 0,
         {.pages = layer.data,
          .page_bytes = layer.PageBytes(),
          .head_bytes = layer.HeadBytes(),
          .num_pages = layer.num_pages,
          .head_dim = layer.head_dim,
          .k = DeviceData<float>(op.k),
          .k_stride = op.k.row_stride(),
          .v = DeviceData<float>(op.v),
          .v_stride = op.v.row_stride(),
          .positions = DeviceData<std::int32_t>(op.places.positions),
          .sequences = DeviceData<std::int32_t>(op.places.sequences),
          .page_table = DeviceData<std::int32_t>(op.places.page_table),
          .page_table_stride = op.places.page_table.row_stride(),
          .num_sequences = op.places.page_table.size(0),
          .max_pages = op.places.page_table.size(1)});
}

}  // namespace jubal

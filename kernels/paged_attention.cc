#include "kernels/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu_isa.h"
#include "kernels/paged_attention_forms.h"

namespace jubal {
namespace {

void CheckPages(const KvLayer& pages) {
  CHECK(pages.data != nullptr);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(pages.data) % 64, 0u);
  CHECK(pages.heads >= 1);
  CHECK(pages.head_dim >= 1 && pages.head_dim <= kMaxHeadDim);
}

void CheckPlaces(const TokenPlaces& places, std::int64_t tokens) {
  for (const ConstTensorView* view : {&places.positions, &places.sequences}) {
    CHECK(view->dtype() == DType::kI32 && view->dense() && view->shape() == (Shape{tokens}));
  }
  CHECK(places.page_table.dtype() == DType::kI32 && places.page_table.rank() == 2);
}

/// The pages of a token's sequence, up to the token's own.
const std::int32_t* PagesOf(const TokenPlaces& places, const KvLayer& layer, std::int64_t token) {
  const std::int32_t position = places.positions.data<std::int32_t>()[token];
  const std::int32_t sequence = places.sequences.data<std::int32_t>()[token];
  CHECK(sequence >= 0 && sequence < places.page_table.size(0));
  CHECK(position >= 0 && position < places.page_table.size(1) * kPageTokens);
  const std::int32_t* pages = places.page_table.row<std::int32_t>(sequence);
  for (std::int64_t i = 0; i <= position / kPageTokens; ++i) {
    CHECK(pages[i] >= 0 && pages[i] < layer.num_pages);
  }
  return pages;
}

/// Writes x[i] to element first + i · stride of `matrix`, rounded to multiples of the scale that
/// makes the largest one `max_level`; returns the scale. What is not finite is lost: the caller's
/// logits are not finite either.
template <class Integer>
float StoreIntegers(const float* x, std::int64_t n, float max_level, std::byte* matrix,
                    std::int64_t first, std::int64_t stride) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float scale = largest / max_level;
  for (std::int64_t i = 0; i < n; ++i) {
    const float level = std::rint(x[i] / scale);
    const bool usable = std::fabs(level) <= max_level;  // false for 0 / 0 and infinities
    const auto value = static_cast<Integer>(usable ? level : 0.0f);
    std::memcpy(matrix + (first + i * stride) * std::int64_t{sizeof value}, &value, sizeof value);
  }
  return scale;
}

/// The same for any type; 1 for a type without scales.
float Store(KvType type, const float* x, std::int64_t n, std::byte* matrix, std::int64_t first,
            std::int64_t stride) {
  switch (type) {
    case KvType::kF32:
      for (std::int64_t i = 0; i < n; ++i) {
        std::memcpy(matrix + (first + i * stride) * std::int64_t{sizeof(float)}, x + i,
                    sizeof(float));
      }
      return 1.0f;
    case KvType::kInt16:
      return StoreIntegers<std::int16_t>(x, n, 32767.0f, matrix, first, stride);
    case KvType::kInt8:
      return StoreIntegers<std::int8_t>(x, n, 127.0f, matrix, first, stride);
  }
  CheckFailed(__FILE__, __LINE__, "unknown KV type");
}

void StoreToken(const StoreKv& op, std::int64_t token) {
  const KvLayer& layer = op.pages;
  const std::int64_t position = op.places.positions.data<std::int32_t>()[token];
  const std::int32_t page = PagesOf(op.places, layer, token)[position / kPageTokens];
  const std::int64_t slot = position % kPageTokens;
  const std::int64_t matrix_bytes = layer.head_dim * kPageTokens * SizeOf(layer.type);
  for (std::int64_t h = 0; h < layer.heads; ++h) {
    std::byte* k = layer.data + page * layer.PageBytes() + h * layer.HeadBytes();
    std::byte* v = k + matrix_bytes;
    const float k_scale = Store(layer.type, op.k.row<float>(token) + h * layer.head_dim,
                                layer.head_dim, k, slot, kPageTokens);
    const float v_scale = Store(layer.type, op.v.row<float>(token) + h * layer.head_dim,
                                layer.head_dim, v, slot * layer.head_dim, 1);
    if (layer.type != KvType::kF32) {
      auto* scales = reinterpret_cast<float*>(v + matrix_bytes);
      scales[slot] = k_scale;
      scales[kPageTokens + slot] = v_scale;
    }
  }
}

const AttentionForms& FormsOfCpu() {
#if defined(__x86_64__)
  switch (ActiveCpuIsa()) {
    case CpuIsa::kPortable:
      break;
    case CpuIsa::kAvx2:
      return kAvx2Attention;
    case CpuIsa::kAvx512:
      return kAvx512Attention;
  }
#endif
  return kPortableAttention;
}

}  // namespace

std::int64_t SizeOf(KvType type) {
  switch (type) {
    case KvType::kF32:
      return 4;
    case KvType::kInt16:
      return 2;
    case KvType::kInt8:
      return 1;
  }
  CheckFailed(__FILE__, __LINE__, "unknown KV type");
}

std::int64_t KvLayer::HeadBytes() const {
  const std::int64_t scales = type == KvType::kF32 ? 0 : 2 * kPageTokens * 4;
  return 2 * head_dim * kPageTokens * SizeOf(type) + scales;
}

std::int64_t PagedAttentionWorkspaceBytes(std::int64_t tokens, std::int64_t heads,
                                          std::int64_t head_dim, std::int64_t max_keys,
                                          Device device) {
  const std::int64_t runs = AttentionRuns(max_keys);
  if (device == Device::kCpu || runs <= 1) return 0;
  // The sums over values, the largest score and the sum of weights.
  return tokens * heads * runs * (head_dim + 2) * std::int64_t{sizeof(float)};
}

void Check(const StoreKv& op) {
  CheckPages(op.pages);
  CHECK(op.k.dtype() == DType::kF32 && op.v.dtype() == DType::kF32);
  CHECK_EQ(op.k.rank(), 2);
  CHECK_EQ(op.k.size(1), op.pages.heads * op.pages.head_dim);
  CHECK(op.v.shape() == op.k.shape());
  CheckPlaces(op.places, op.k.size(0));
}

void RunOnCpu(const StoreKv& op) {
  const std::int64_t tokens = op.k.size(0);
#pragma omp parallel for if (tokens > 4)
  for (std::int64_t t = 0; t < tokens; ++t) StoreToken(op, t);
}

void Check(const PagedAttention& op) {
  CheckPages(op.pages);
  CHECK(op.out.dtype() == DType::kF32 && op.q.dtype() == DType::kF32);
  CHECK_EQ(op.q.rank(), 2);
  CHECK(op.out.shape() == op.q.shape());
  CHECK(op.kv_heads.dtype() == DType::kI32 && op.kv_heads.rank() == 1 && op.kv_heads.dense());
  CHECK_EQ(op.q.size(1), op.kv_heads.size(0) * op.pages.head_dim);
  CHECK(op.soft_cap >= 0.0f);
  CheckPlaces(op.places, op.q.size(0));
  const std::int64_t needed =
      PagedAttentionWorkspaceBytes(op.q.size(0), op.kv_heads.size(0), op.pages.head_dim,
                                   op.places.page_table.size(1) * kPageTokens, op.pages.device);
  if (needed == 0) return;
  CHECK(op.workspace.dtype() == DType::kU8 && op.workspace.device() == op.pages.device);
  CHECK_GE(op.workspace.bytes(), needed);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(op.workspace.raw()) % 64, 0u);
}

void RunOnCpu(const PagedAttention& op) {
  const KvLayer& layer = op.pages;
  const AttentionForms& forms = FormsOfCpu();
  const auto attend = layer.type == KvType::kF32     ? forms.f32
                      : layer.type == KvType::kInt16 ? forms.int16
                                                     : forms.int8;
  const std::int64_t tokens = op.q.size(0);
  const std::int64_t heads = op.kv_heads.size(0);
  const std::int32_t* kv_heads = op.kv_heads.data<std::int32_t>();
  const auto* pool = reinterpret_cast<const std::uint8_t*>(layer.data);
  // Dynamic, since tokens differ in how many keys they see.
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      if (h > 0 && kv_heads[h] == kv_heads[h - 1]) continue;  // done with its first neighbour
      CHECK(kv_heads[h] >= 0 && kv_heads[h] < layer.heads);
      std::int64_t end = h + 1;
      while (end < heads && kv_heads[end] == kv_heads[h]) ++end;
      attend({
          .q = op.q.row<float>(t) + h * layer.head_dim,
          .out = op.out.row<float>(t) + h * layer.head_dim,
          .num_heads = end - h,
          .head_dim = layer.head_dim,
          .head = pool + kv_heads[h] * layer.HeadBytes(),
          .page_bytes = layer.PageBytes(),
          .pages = PagesOf(op.places, layer, t),
          .keys = op.places.positions.data<std::int32_t>()[t] + 1,
          .scale = op.scale,
          .soft_cap = op.soft_cap,
      });
    }
  }
}

}  // namespace jubal

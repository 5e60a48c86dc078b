#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/float_math.h"
#include "kernels/paged_attention.h"
#include "kernels/paged_attention_forms.h"

namespace jubal {
namespace {

/// One KV head of one page.
struct HeadInPage {
  const KvLayer& layer;
  const std::byte* data;

  /// Element `index` of K and V together, as stored: without its scale.
  float Element(std::int64_t index) const {
    const std::byte* at = data + index * SizeOf(layer.type);
    switch (layer.type) {
      case KvType::kF32: {
        float value;
        std::memcpy(&value, at, sizeof(value));
        return value;
      }
      case KvType::kInt16: {
        std::int16_t value;
        std::memcpy(&value, at, sizeof(value));
        return value;
      }
      case KvType::kInt8:
        return static_cast<std::int8_t>(*at);
    }
    CheckFailed(__FILE__, __LINE__, "unknown KV type");
  }
  float K(std::int64_t slot, std::int64_t d) const { return Element(d * kPageTokens + slot); }
  float V(std::int64_t slot, std::int64_t d) const {
    return Element((kPageTokens + slot) * layer.head_dim + d);
  }
  float Scale(std::int64_t index) const {
    if (layer.type == KvType::kF32) return 1.0f;
    float value;
    const std::int64_t matrices = 2 * layer.head_dim * kPageTokens * SizeOf(layer.type);
    std::memcpy(&value, data + matrices + index * 4, sizeof(value));
    return value;
  }
  float KScale(std::int64_t slot) const { return Scale(slot); }
  float VScale(std::int64_t slot) const { return Scale(kPageTokens + slot); }
};

void AttendHead(const PagedAttention& op, std::int64_t token, std::int64_t head) {
  const KvLayer& layer = op.pages;
  const std::int64_t head_dim = layer.head_dim;
  const std::int32_t kv_head = op.kv_heads.data<std::int32_t>()[head];
  const std::int64_t keys = op.places.positions.data<std::int32_t>()[token] + 1;
  const std::int32_t* pages =
      op.places.page_table.row<std::int32_t>(op.places.sequences.data<std::int32_t>()[token]);
  const auto at = [&](std::int64_t position) {
    const std::int64_t page = pages[position / kPageTokens];
    return HeadInPage{layer, layer.data + page * layer.PageBytes() + kv_head * layer.HeadBytes()};
  };
  const float* q = op.q.row<float>(token) + head * head_dim;

  std::array<float, kMaxHeadDim> total{};
  float total_max = -std::numeric_limits<float>::infinity();
  float denominator = 0.0f;
  for (std::int64_t begin = 0; begin < keys; begin += kAttentionRun) {
    const std::int64_t count = std::min(kAttentionRun, keys - begin);
    std::array<float, kAttentionRun> weights;
    float max = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = 0; j < count; ++j) {
      const HeadInPage page = at(begin + j);
      const std::int64_t slot = (begin + j) % kPageTokens;
      float s = 0.0f;
      for (std::int64_t d = 0; d < head_dim; ++d) s = std::fma(q[d], page.K(slot, d), s);
      s = s * page.KScale(slot) * op.scale;
      if (op.soft_cap != 0.0f) s = op.soft_cap * FastTanh(s * (1.0f / op.soft_cap));
      weights[static_cast<std::size_t>(j)] = s;
      max = std::max(max, s);
    }
    std::array<float, kAttentionLanes> lanes{};
    for (std::int64_t j = 0; j < count; ++j) {
      float& weight = weights[static_cast<std::size_t>(j)];
      weight = FastExp(weight - max);
      lanes[static_cast<std::size_t>(j % kAttentionLanes)] += weight;
    }
    const float sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                      ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));

    const float new_max = std::max(total_max, max);
    const float old_factor = FastExp(total_max - new_max);
    const float run_factor = FastExp(max - new_max);
    for (std::int64_t d = 0; d < head_dim; ++d) {
      float o = 0.0f;
      for (std::int64_t j = 0; j < count; ++j) {
        const HeadInPage page = at(begin + j);
        const std::int64_t slot = (begin + j) % kPageTokens;
        o = std::fma(weights[static_cast<std::size_t>(j)] * page.VScale(slot), page.V(slot, d), o);
      }
      float& t = total[static_cast<std::size_t>(d)];
      t = t * old_factor + o * run_factor;
    }
    denominator = denominator * old_factor + sum * run_factor;
    total_max = new_max;
  }
  float* out = op.out.row<float>(token) + head * head_dim;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    out[d] = total[static_cast<std::size_t>(d)] / denominator;
  }
}

}  // namespace

void RunReference(const PagedAttention& op) {
  for (std::int64_t t = 0; t < op.q.size(0); ++t) {
    for (std::int64_t h = 0; h < op.kv_heads.size(0); ++h) AttendHead(op, t, h);
  }
}

}  // namespace jubal

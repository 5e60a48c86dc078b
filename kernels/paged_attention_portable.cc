#include <cmath>
#include <cstring>

#include "kernels/paged_attention_forms.h"

namespace jubal {
namespace {

template <class Type>
Type Read(const std::uint8_t* data, std::int64_t index) {
  Type value;
  std::memcpy(&value, data + index * std::int64_t{sizeof(Type)}, sizeof(Type));
  return value;
}

struct F32 {
  static constexpr std::int64_t kBytes = 4;
  static float Get(const std::uint8_t* data, std::int64_t i) { return Read<float>(data, i); }
};
struct Int16 {
  static constexpr std::int64_t kBytes = 2;
  static float Get(const std::uint8_t* data, std::int64_t i) { return Read<std::int16_t>(data, i); }
};
struct Int8 {
  static constexpr std::int64_t kBytes = 1;
  static float Get(const std::uint8_t* data, std::int64_t i) { return Read<std::int8_t>(data, i); }
};

/// std::fma is one instruction where the compiler's target has it (Arm), else a slow call: the
/// price of the same bits everywhere.
template <class Kv, bool kScales>
struct PortableForm {
  static constexpr std::int64_t kElementBytes = Kv::kBytes;
  static constexpr bool kHasScales = kScales;
  static constexpr int kMaxHeads = 1;

  template <int>
  static void Score(const float* q, std::int64_t head_dim, const std::uint8_t* k,
                    std::int64_t count, const std::uint8_t* /*next*/, float* scores) {
    for (std::int64_t t = 0; t < count; ++t) scores[t] = 0.0f;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      for (std::int64_t t = 0; t < count; ++t) {
        scores[t] = std::fma(q[d], Kv::Get(k, d * kPageTokens + t), scores[t]);
      }
    }
  }

  template <int>
  static void Accumulate(const float* weights, std::int64_t head_dim, const std::uint8_t* v,
                         std::int64_t count, const std::uint8_t* /*next*/, float* sums) {
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        sums[d] = std::fma(weights[t], Kv::Get(v, t * head_dim + d), sums[d]);
      }
    }
  }
};

}  // namespace

const AttentionForms kPortableAttention = {
    &Attend<PortableForm<F32, false>>,
    &Attend<PortableForm<Int16, true>>,
    &Attend<PortableForm<Int8, true>>,
};

}  // namespace jubal

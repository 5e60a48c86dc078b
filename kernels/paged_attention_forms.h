#ifndef JUBAL_KERNELS_PAGED_ATTENTION_FORMS_H_
#define JUBAL_KERNELS_PAGED_ATTENTION_FORMS_H_

#include <cstdint>

#include "kernels/float_math.h"
#include "kernels/paged_attention.h"

namespace jubal {

// The CPU forms of PagedAttention: one table of functions per instruction-set tier, each in a
// translation unit of its own that is compiled for that tier. All give the bits of RunReference.
// What is defined here is always inlined, or instantiated with types local to such a unit, and the
// units call nothing else: the linker must not pick a copy for callers on lesser CPUs.

inline constexpr std::int64_t kMaxHeadDim = 256;
/// Key j of a run adds its weight to lane j mod 8; the lanes are added up as a tree.
inline constexpr int kAttentionLanes = 8;

/// One token's query heads that share a KV head.
struct AttentionTask {
  const float* q;  // [num_heads, head_dim]
  float* out;      // [num_heads, head_dim]
  std::int64_t num_heads;
  std::int64_t head_dim;     // 1 … kMaxHeadDim
  const std::uint8_t* head;  // the KV head in page 0 of the pool
  std::int64_t page_bytes;
  const std::int32_t* pages;  // of the sequence, in order
  std::int64_t keys;          // ≥ 1: attends to positions 0 … keys − 1
  float scale;
  float soft_cap;
};

struct AttentionForms {
  void (*f32)(const AttentionTask& task);
  void (*int16)(const AttentionTask& task);
  void (*int8)(const AttentionTask& task);
};

extern const AttentionForms kPortableAttention;
extern const AttentionForms kAvx2Attention;    // x86-64 only
extern const AttentionForms kAvx512Attention;  // x86-64 only

struct RunSoftmax {
  float max;
  float sum;
};

/// Turns the products q · k of one run into e^(s − max). `scores` has room for `count` rounded up
/// to a multiple of 8.
[[gnu::always_inline]] inline RunSoftmax SoftmaxOfRun(float* scores, std::int64_t count,
                                                      float scale, float soft_cap) {
  const float inverse_cap = 1.0f / soft_cap;
  if (soft_cap != 0.0f) {
    for (std::int64_t i = 0; i < count; ++i) {
      scores[i] = soft_cap * FastTanh(scores[i] * scale * inverse_cap);
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) scores[i] = scores[i] * scale;
  }
  const std::int64_t padded = (count + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
  for (std::int64_t i = count; i < padded; ++i) scores[i] = -__builtin_inff();

  float lanes[kAttentionLanes];
  for (int lane = 0; lane < kAttentionLanes; ++lane) lanes[lane] = scores[lane];
  for (std::int64_t i = kAttentionLanes; i < padded; i += kAttentionLanes) {
    for (int lane = 0; lane < kAttentionLanes; ++lane) {
      lanes[lane] = scores[i + lane] > lanes[lane] ? scores[i + lane] : lanes[lane];
    }
  }
  float max = lanes[0];
  for (int lane = 1; lane < kAttentionLanes; ++lane) max = lanes[lane] > max ? lanes[lane] : max;

  for (std::int64_t i = 0; i < padded; ++i) scores[i] = FastExp(scores[i] - max);
  for (int lane = 0; lane < kAttentionLanes; ++lane) lanes[lane] = 0.0f;
  for (std::int64_t i = 0; i < padded; i += kAttentionLanes) {
    for (int lane = 0; lane < kAttentionLanes; ++lane) lanes[lane] += scores[i + lane];
  }
  return {max, ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                   ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))};
}

/// Attention of kHeads query heads, starting with `first`, that share the loads of keys and values.
///
/// A Form has, for kHeads up to its kMaxHeads:
///   kElementBytes, kHasScales
///   Score<kHeads>(q, head_dim, k, count, next, scores): scores[h][t] = Σ_d q[h][d] · k[d][t] for
///     t < count at least, fused multiply-adds in ascending d; scores may be written up to t = 31
///   Accumulate<kHeads>(weights, head_dim, v, count, next, sums):
///     sums[h][d] += Σ_t weights[h][t] · v[t][d] for t < count, fused, in ascending t
/// where row h is h · kAttentionRun or h · kMaxHeadDim further on, and `next` is what the next call
/// of its kind will read, to prefetch.
template <class Form, int kHeads>
void AttendHeads(const AttentionTask& task, std::int64_t first) {
  const std::int64_t head_dim = task.head_dim;
  const std::int64_t matrix_bytes = head_dim * kPageTokens * Form::kElementBytes;
  alignas(64) float q[kHeads * kMaxHeadDim];
  alignas(64) float scores[kHeads * kAttentionRun];
  alignas(64) float sums[kHeads * kMaxHeadDim];   // of one run
  alignas(64) float total[kHeads * kMaxHeadDim];  // of the runs so far
  float max[kHeads];
  float denominator[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    const float* source = task.q + (first + h) * head_dim;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      q[h * kMaxHeadDim + d] = source[d];
      total[h * kMaxHeadDim + d] = 0.0f;
    }
    max[h] = -__builtin_inff();
    denominator[h] = 0.0f;
  }
  const std::int64_t last_page = (task.keys - 1) / kPageTokens;
  const auto head_in_page = [&](std::int64_t page) __attribute__((always_inline)) {
    return task.head + task.pages[page < last_page ? page : last_page] * task.page_bytes;
  };

  for (std::int64_t begin = 0; begin < task.keys; begin += kAttentionRun) {
    const std::int64_t left = task.keys - begin;
    const std::int64_t count = left < kAttentionRun ? left : kAttentionRun;
    for (std::int64_t t = 0; t < count; t += kPageTokens) {
      const std::int64_t page = (begin + t) / kPageTokens;
      const std::int64_t tokens = count - t < kPageTokens ? count - t : kPageTokens;
      const std::uint8_t* k = head_in_page(page);
      Form::template Score<kHeads>(q, head_dim, k, tokens, head_in_page(page + 1), scores + t);
      if constexpr (Form::kHasScales) {
        const auto* scales = reinterpret_cast<const float*>(k + 2 * matrix_bytes);
        for (int h = 0; h < kHeads; ++h) {
          for (std::int64_t i = 0; i < tokens; ++i) scores[h * kAttentionRun + t + i] *= scales[i];
        }
      }
    }

    float old_factor[kHeads];
    float run_factor[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      const RunSoftmax run =
          SoftmaxOfRun(scores + h * kAttentionRun, count, task.scale, task.soft_cap);
      const float new_max = run.max > max[h] ? run.max : max[h];
      old_factor[h] = FastExp(max[h] - new_max);
      run_factor[h] = FastExp(run.max - new_max);
      max[h] = new_max;
      denominator[h] = denominator[h] * old_factor[h] + run.sum * run_factor[h];
      for (std::int64_t d = 0; d < head_dim; ++d) sums[h * kMaxHeadDim + d] = 0.0f;
    }

    for (std::int64_t t = 0; t < count; t += kPageTokens) {
      const std::int64_t page = (begin + t) / kPageTokens;
      const std::int64_t tokens = count - t < kPageTokens ? count - t : kPageTokens;
      const std::uint8_t* v = head_in_page(page) + matrix_bytes;
      if constexpr (Form::kHasScales) {
        const auto* scales = reinterpret_cast<const float*>(v + matrix_bytes) + kPageTokens;
        for (int h = 0; h < kHeads; ++h) {
          for (std::int64_t i = 0; i < tokens; ++i) scores[h * kAttentionRun + t + i] *= scales[i];
        }
      }
      Form::template Accumulate<kHeads>(scores + t, head_dim, v, tokens,
                                        head_in_page(page + 1) + matrix_bytes, sums);
    }
    for (int h = 0; h < kHeads; ++h) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        total[h * kMaxHeadDim + d] =
            total[h * kMaxHeadDim + d] * old_factor[h] + sums[h * kMaxHeadDim + d] * run_factor[h];
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float* out = task.out + (first + h) * head_dim;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      out[d] = total[h * kMaxHeadDim + d] / denominator[h];
    }
  }
}

template <class Form, int kHeads>
void AttendSlice(const AttentionTask& task, std::int64_t first, std::int64_t count) {
  if (count == kHeads) {
    AttendHeads<Form, kHeads>(task, first);
  } else if constexpr (kHeads > 1) {
    AttendSlice<Form, kHeads - 1>(task, first, count);
  }
}

/// All heads of a task, in slices of nearly equal size.
template <class Form>
void Attend(const AttentionTask& task) {
  const std::int64_t slices = (task.num_heads + Form::kMaxHeads - 1) / Form::kMaxHeads;
  for (std::int64_t s = 0; s < slices; ++s) {
    const std::int64_t begin = task.num_heads * s / slices;
    const std::int64_t end = task.num_heads * (s + 1) / slices;
    AttendSlice<Form, Form::kMaxHeads>(task, begin, end - begin);
  }
}

}  // namespace jubal

#endif  // JUBAL_KERNELS_PAGED_ATTENTION_FORMS_H_

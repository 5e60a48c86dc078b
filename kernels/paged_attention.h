#ifndef JUBAL_KERNELS_PAGED_ATTENTION_H_
#define JUBAL_KERNELS_PAGED_ATTENTION_H_

#include "kernels/chunks.h"
#include "kernels/tensor.h"

namespace jubal {

/// Tokens in one page of the KV cache.
inline constexpr std::int64_t kPageTokens = 32;

/// Keys are attended to in runs of this many, whatever the batch: each run has a softmax of its
/// own, and runs are combined in ascending order.
inline constexpr std::int64_t kAttentionRun = 512;

/// How keys and values are stored. The integers have one scale per token, head and K or V: the
/// largest |x| over 32767 or 127. kInt16 takes the room of IEEE halves and errs less, since a
/// head's elements are of one size: halves cost greedy tokens where a router's choice is near a
/// tie.
enum class KvType : std::uint8_t { kF32, kInt16, kInt8 };

std::int64_t SizeOf(KvType type);  // bytes of one element

/// One layer's part of the pool of KV pages on one rank.
///
/// A page holds, for each KV head of the rank: K [head_dim, kPageTokens] (transposed, so that a
/// vector holds neighbouring tokens), V [kPageTokens, head_dim], and for integers the scales K
/// [kPageTokens] f32 and V [kPageTokens] f32. Owns nothing; every byte is initialised.
struct KvLayer {
  std::byte* data = nullptr;  // 64-byte aligned
  std::int64_t num_pages = 0;
  std::int64_t heads = 0;  // KV heads of the rank
  std::int64_t head_dim = 0;
  KvType type = KvType::kInt16;
  Device device = Device::kCpu;

  std::int64_t HeadBytes() const;  // K and V of one head in one page
  std::int64_t PageBytes() const { return heads * HeadBytes(); }
};

/// Where each token of a step belongs.
struct TokenPlaces {
  ConstTensorView positions;   // [tokens] i32: the token's position in its sequence
  ConstTensorView sequences;   // [tokens] i32: row of page_table
  ConstTensorView page_table;  // [sequences, max_pages] i32: pages of the sequence in order
};

/// Writes the keys and values of a step's tokens to their pages.
struct StoreKv {
  KvLayer pages;
  ConstTensorView k;  // [tokens, kv heads · head_dim] f32, already rotated
  ConstTensorView v;  // [tokens, kv heads · head_dim] f32
  TokenPlaces places;
};

/// For each token and query head h, over the keys at positions 0 … the token's own:
///   s = scale · (q · k);  s = soft_cap · tanh(s / soft_cap) unless soft_cap is 0
///   out = softmax(s) · v
/// in fp32. The step's own keys are in the pages already (StoreKv runs first). A token's result
/// depends on its sequence alone, not on the other tokens of the step.
/// Source: xai-org/grok-1 model.py, MultiHeadAttention.
struct PagedAttention {
  TensorView out;     // [tokens, heads · head_dim] f32
  ConstTensorView q;  // [tokens, heads · head_dim] f32, already rotated
  KvLayer pages;
  TokenPlaces places;
  ConstTensorView kv_heads;  // [heads] i32: for each query head of the rank, its local KV head;
                             // heads that share one are neighbours
  float scale = 1.0f;
  float soft_cap = 0.0f;
  TensorView workspace = {};  // [≥ PagedAttentionWorkspaceBytes] u8, 64-byte aligned; empty for 0
};

/// Runs of that many keys: 0 … max_keys − 1.
inline std::int64_t AttentionRuns(std::int64_t max_keys) {
  return DivideUp(max_keys, kAttentionRun);
}

/// What a GPU keeps of each run where a sequence can have several; 0 on the CPU. `max_keys` is the
/// most that a sequence can have: kPageTokens times the columns of the page table.
std::int64_t PagedAttentionWorkspaceBytes(std::int64_t tokens, std::int64_t heads,
                                          std::int64_t head_dim, std::int64_t max_keys,
                                          Device device);

void Check(const StoreKv& op);
void RunOnCpu(const StoreKv& op);

void Check(const PagedAttention& op);
void RunOnCpu(const PagedAttention& op);
void RunReference(const PagedAttention& op);

}  // namespace jubal

#endif  // JUBAL_KERNELS_PAGED_ATTENTION_H_

#include "parallel/exchange_buffers.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/chunks.h"

namespace jubal {
namespace {

// Pairs whose outputs every rank takes whole. Beyond, what is saved in rounds is lost in bytes.
constexpr std::int64_t kEverywhereBytes = 64 * 1024;

/// Cuts views from the front of a piece of memory.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  TensorView Take(DType dtype, Shape shape) {
    const std::int64_t begin = used_;
    used_ += (shape.elements() * SizeOf(dtype) + kAlignment - 1) / kAlignment * kAlignment;
    return TensorView(memory_ == nullptr ? nullptr : memory_ + begin, dtype, shape);
  }

  std::int64_t used() const { return used_; }
  void GoBackTo(std::int64_t place) { used_ = place; }

 private:
  std::byte* memory_;
  std::int64_t used_ = 0;
};

std::int64_t MaxHomeTokens(const ParallelPlan& plan, const ExchangeSizes& sizes) {
  if (plan.world() == 1) return sizes.max_tokens;
  std::int64_t tokens = (sizes.max_tokens + plan.tensor - 1) / plan.tensor;
  const std::int64_t pair_bytes = sizes.top_k * sizes.hidden * SizeOf(DType::kF32);
  const std::int64_t everywhere = std::min(sizes.max_tokens, kEverywhereBytes / pair_bytes);
  if (HomeIsEverywhere(plan, sizes, everywhere)) tokens = std::max(tokens, everywhere);
  return tokens;
}

}  // namespace

ExchangeBuffers LayOut(const ParallelPlan& plan, const Seat& seat, const ExchangeSizes& sizes,
                       std::byte* memory) {
  constexpr DType kF32 = DType::kF32;
  constexpr DType kI32 = DType::kI32;
  const std::int64_t hidden = sizes.hidden;
  const std::int64_t top_k = sizes.top_k;
  const std::int64_t max_rows = MaxExpertRows(plan, seat, sizes);
  const std::int64_t all_tokens = plan.data * sizes.max_tokens;
  const std::int64_t home_tokens = MaxHomeTokens(plan, sizes);
  const std::int64_t home_pairs = home_tokens * top_k;
  const std::int64_t own_subtrees = SubtreesOf(plan, seat.expert_tensor);
  const std::int64_t local_experts = OwnedExperts(plan, sizes.experts, seat.expert).size();
  std::int64_t subtrees = 0;
  for (int x = 0; x < plan.expert_tensor; ++x) subtrees += SubtreesOf(plan, x);
  const bool alone = plan.world() == 1;
  const bool all_to_all = plan.exchange == Exchange::kAllToAll && !alone;
  const std::int64_t most_rows = std::max(own_subtrees * max_rows, all_tokens * top_k);
  CHECK_LE(most_rows, std::numeric_limits<std::int32_t>::max());

  Carver carver(memory);
  ExchangeBuffers buffers;
  buffers.tokens = carver.Take(kF32, {max_rows, hidden});
  buffers.partials = carver.Take(kF32, {own_subtrees, max_rows, hidden});
  buffers.offsets = carver.Take(kI32, {local_experts + 1});
  if (!all_to_all) {
    buffers.row_of = carver.Take(kI32, {all_tokens, top_k});
    buffers.token_of = carver.Take(kI32, {all_tokens * top_k});
  }
  buffers.home_offsets = carver.Take(kI32, {sizes.experts + 1});
  buffers.home_row_of = carver.Take(kI32, {home_tokens, top_k});
  buffers.home_token_of = carver.Take(kI32, {home_pairs});
  buffers.count = carver.Take(kI32, {1});
  buffers.bytes = carver.used();
  if (alone) return buffers;

  buffers.index = carver.Take(kI32, {own_subtrees * max_rows});
  const std::int64_t shared = carver.used();
  if (all_to_all) {
    buffers.outgoing = carver.Take(kF32, {home_pairs, hidden});
    buffers.incoming = local_experts == 1 ? buffers.tokens : carver.Take(kF32, {max_rows, hidden});
  } else if (plan.data > 1) {
    buffers.all_x = carver.Take(kF32, {all_tokens, hidden});
    buffers.all_ids = carver.Take(kI32, {all_tokens, top_k});
  }
  const std::int64_t there = carver.used();
  carver.GoBackTo(shared);
  buffers.packed = carver.Take(kF32, {own_subtrees * max_rows, hidden});
  buffers.returned = carver.Take(kF32, {subtrees * home_pairs, hidden});
  if (plan.expert_tensor > 1) buffers.outputs = carver.Take(kF32, {home_pairs, hidden});
  buffers.bytes = std::max(there, carver.used());
  return buffers;
}

bool HomeIsEverywhere(const ParallelPlan& plan, const ExchangeSizes& sizes, std::int64_t tokens) {
  if (plan.world() == 1) return true;
  return plan.exchange == Exchange::kReplicated && plan.data == 1 &&
         tokens * sizes.top_k * sizes.hidden * SizeOf(DType::kF32) <= kEverywhereBytes;
}

std::int64_t SubtreesOf(const ParallelPlan& plan, int expert_tensor) {
  return static_cast<std::int64_t>(
      MaximalSubtrees(OwnedChunks(expert_tensor, plan.expert_tensor)).size());
}

}  // namespace jubal

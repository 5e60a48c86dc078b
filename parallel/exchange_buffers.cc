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
  Carver(std::byte* memory, Device device) : memory_(memory), device_(device) {}

  TensorView Take(DType dtype, Shape shape) {
    const std::int64_t begin = used_;
    used_ += (shape.elements() * SizeOf(dtype) + kAlignment - 1) / kAlignment * kAlignment;
    return TensorView(memory_ == nullptr ? nullptr : memory_ + begin, dtype, shape, device_);
  }

  std::int64_t used() const { return used_; }
  void GoBackTo(std::int64_t place) { used_ = place; }

 private:
  std::byte* memory_;
  Device device_;
  std::int64_t used_ = 0;
};

/// In steps in which no data group has more than `max_tokens`.
std::int64_t MaxHomeTokens(const ParallelPlan& plan, const ExchangeSizes& sizes,
                           std::int64_t max_tokens) {
  if (plan.world() == 1) return max_tokens;
  std::int64_t tokens = (max_tokens + plan.tensor - 1) / plan.tensor;
  const std::int64_t pair_bytes = sizes.top_k * sizes.hidden * SizeOf(DType::kF32);
  const std::int64_t everywhere = std::min(max_tokens, kEverywhereBytes / pair_bytes);
  if (HomeIsEverywhere(plan, sizes, everywhere)) tokens = std::max(tokens, everywhere);
  return tokens;
}

/// Of the subtrees of all ranks that share an expert.
std::int64_t AllSubtrees(const ParallelPlan& plan) {
  std::int64_t subtrees = 0;
  for (int x = 0; x < plan.expert_tensor; ++x) subtrees += SubtreesOf(plan, x);
  return subtrees;
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
  const std::int64_t home_tokens = MaxHomeTokens(plan, sizes, sizes.max_tokens);
  const std::int64_t home_pairs = home_tokens * top_k;
  const std::int64_t own_subtrees = SubtreesOf(plan, seat.expert_tensor);
  const std::int64_t local_experts = OwnedExperts(plan, sizes.experts, seat.expert).size();
  const std::int64_t subtrees = AllSubtrees(plan);
  const bool alone = plan.world() == 1;
  const bool all_to_all = plan.exchange == Exchange::kAllToAll && !alone;
  const std::int64_t padded_tokens = PaddedTokens(plan, sizes);
  const std::int64_t slots = SlotsOf(plan, sizes);
  const std::int64_t padded_home_pairs = MaxHomeTokens(plan, sizes, padded_tokens) * slots;
  const std::int64_t replicated_tokens = all_to_all ? plan.data * padded_tokens : all_tokens;
  const bool exact = padded_tokens < sizes.max_tokens;  // whether there are other than padded steps
  const std::int64_t most_rows = std::max(own_subtrees * max_rows, all_tokens * top_k);
  CHECK_LE(most_rows, std::numeric_limits<std::int32_t>::max());

  Carver carver(memory, sizes.device);
  ExchangeBuffers buffers;
  buffers.tokens = carver.Take(kF32, {max_rows, hidden});
  buffers.partials = carver.Take(kF32, {own_subtrees, max_rows, hidden});
  buffers.offsets = carver.Take(kI32, {local_experts + 1});
  buffers.row_of = carver.Take(kI32, {replicated_tokens, top_k});
  buffers.token_of = carver.Take(kI32, {replicated_tokens * top_k});
  buffers.home_offsets = carver.Take(kI32, {sizes.experts + 1});
  buffers.home_row_of = carver.Take(kI32, {home_tokens, top_k});
  buffers.home_token_of = carver.Take(kI32, {home_pairs});
  buffers.count = carver.Take(kI32, {1});
  buffers.bytes = carver.used();
  if (alone) return buffers;

  buffers.index = carver.Take(kI32, {own_subtrees * max_rows});
  const std::int64_t shared = carver.used();
  if (all_to_all && exact) {
    buffers.outgoing = carver.Take(kF32, {home_pairs, hidden});
    buffers.incoming = local_experts == 1 ? buffers.tokens : carver.Take(kF32, {max_rows, hidden});
  }
  std::int64_t there = carver.used();
  if (plan.data > 1) {
    carver.GoBackTo(shared);
    buffers.all_x = carver.Take(kF32, {replicated_tokens, hidden});
    buffers.all_ids = carver.Take(kI32, {replicated_tokens, top_k});
    there = std::max(there, carver.used());
  }
  carver.GoBackTo(shared);
  const std::int64_t packed_rows =
      std::max(exact ? max_rows : 0, plan.data * padded_tokens * slots);
  const std::int64_t returned_pairs =
      std::max(exact ? home_pairs : 0, plan.expert * padded_home_pairs);
  buffers.packed = carver.Take(kF32, {own_subtrees * packed_rows, hidden});
  buffers.returned = carver.Take(kF32, {subtrees * returned_pairs, hidden});
  if (plan.expert_tensor > 1) buffers.outputs = carver.Take(kF32, {returned_pairs, hidden});
  buffers.bytes = std::max(there, carver.used());
  return buffers;
}

bool HomeIsEverywhere(const ParallelPlan& plan, const ExchangeSizes& sizes, std::int64_t tokens) {
  if (plan.world() == 1) return true;
  return plan.exchange == Exchange::kReplicated && plan.data == 1 &&
         tokens * sizes.top_k * sizes.hidden * SizeOf(DType::kF32) <= kEverywhereBytes;
}

std::int64_t PaddedTokens(const ParallelPlan& plan, const ExchangeSizes& sizes) {
  if (sizes.device == Device::kCpu) return 0;
  if (plan.expert == 1) return sizes.max_tokens;
  const std::int64_t home_token_bytes =
      plan.expert * AllSubtrees(plan) * SlotsOf(plan, sizes) * sizes.hidden * SizeOf(DType::kF32);
  return std::min(sizes.max_tokens, sizes.padded_bytes / home_token_bytes * plan.tensor);
}

std::int64_t SlotsOf(const ParallelPlan& plan, const ExchangeSizes& sizes) {
  return std::min(sizes.top_k, (sizes.experts + plan.expert - 1) / plan.expert);
}

std::int64_t SubtreesOf(const ParallelPlan& plan, int expert_tensor) {
  return static_cast<std::int64_t>(
      MaximalSubtrees(OwnedChunks(expert_tensor, plan.expert_tensor)).size());
}

}  // namespace jubal

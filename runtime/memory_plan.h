#ifndef JUBAL_RUNTIME_MEMORY_PLAN_H_
#define JUBAL_RUNTIME_MEMORY_PLAN_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/arena.h"
#include "kernels/paged_attention.h"
#include "kernels/tensor.h"
#include "parallel/expert_exchange.h"
#include "parallel/plan.h"
#include "runtime/model.h"
#include "runtime/model_source.h"

namespace jubal {

/// What the user says about memory and batches.
struct ServingOptions {
  std::int64_t prefill_chunk = 256;                // most prompt tokens of one request in one step
  std::int64_t max_running = 32;                   // most requests of one data group in one step
  std::int64_t kv_memory = std::int64_t{1} << 30;  // bytes of KV pages on one rank, at most
  KvType kv_type = KvType::kInt16;
  std::optional<std::int64_t> context = std::nullopt;  // most positions; none: the model's
  Device device = Device::kCpu;                        // that computes
};

/// Sizes that follow from model, plan and options, equal on every rank.
struct StepLimits {
  std::int64_t max_tokens = 0;     // rows of one data group in one step
  std::int64_t max_sequences = 0;  // requests of one data group in one step
  std::int64_t num_pages = 0;      // KV pages of one data group
  std::int64_t max_pages = 0;      // pages of one sequence
  std::int64_t context = 0;        // most tokens of one sequence
  std::int64_t logit_rows = 0;     // rows of logits computed at a time; on a GPU those of a decode
                                   // step, at least
};

/// What the host tells the device about a step: i32, in one piece of memory, so that one copy
/// brings it.
struct StepInputs {
  TensorView all;           // the others, in this order
  TensorView token_ids;     // [max_tokens]
  TensorView positions;     // [max_tokens]
  TensorView sequences;     // [max_tokens]
  TensorView logit_index;   // [max_tokens]: the rows that logits are wanted of
  TensorView logit_counts;  // for each slice of logit_rows of them: how many it has
  TensorView page_table;    // [max_sequences · max_pages]
};

/// The buffers of a forward pass on one rank. Views into the rank's arena.
struct Activations {
  StepInputs inputs;
  TensorView kv_heads;     // [heads] i32: constant
  TensorView frequencies;  // [head_dim / 2] f32: constant

  TensorView hidden;              // [max_tokens, hidden] f32: the residual stream
  TensorView normed;              // [max_tokens, hidden] f32
  TensorView block_out;           // [max_tokens, hidden] f32: what attention or experts add
  TensorView query;               // [max_tokens, own heads · head_dim] f32
  TensorView key;                 // [max_tokens, own KV heads · head_dim] f32
  TensorView value;               // [max_tokens, own KV heads · head_dim] f32
  TensorView attended;            // [max_tokens, own heads · head_dim] f32
  TensorView attention_partials;  // [own subtrees · max_tokens, hidden] f32
  TensorView router_logits;       // [max_tokens, experts] f32
  TensorView topk_ids;            // [layers · max_tokens, top_k] i32
  TensorView topk_weights;        // [max_tokens, top_k] f32
  TensorView expert_hidden;       // [max expert rows, own columns] f32

  TensorView logit_hidden;    // [logit_rows, hidden] f32
  TensorView logit_shard;     // [logit_rows · own vocabulary] f32
  TensorView logit_arrivals;  // leader: [groups · logit_rows · vocabulary] f32, in order of rank
  TensorView logits;          // leader: [groups · logit_rows, vocabulary] f32
  TensorView targets;         // leader: [groups · max_tokens] i32: ids whose logprobs are wanted
  TensorView results;         // leader: [2, groups · max_tokens] i32: ids, then logprobs (f32)
  TensorView drawn;           // GPUs, of several ranks: [groups · max_tokens] i32: the step's ids

  TensorView matmul_workspace;      // u8, for the largest product
  TensorView attention_workspace;   // u8
  TensorView all_reduce_workspace;  // u8
  TensorView exchange;              // u8, the expert exchange's
  TensorView sample_workspace;      // leader: u8
};

/// The ids among Activations::results.
inline TensorView IdsOf(TensorView results) {
  return results.Rows(0, 1).Reshaped(Shape{results.size(1)});
}

/// Memory of the host that a GPU copies from and to. Views into the rank's pinned arena. CPUs have
/// none: there the host's memory is the device's.
struct PinnedBuffers {
  StepInputs inputs;   // as on the device
  TensorView results;  // leader: as on the device
};

/// Steps take them in turn: one may be prepared while another is under way.
using PinnedRing = std::array<PinnedBuffers, 2>;

/// One line of a budget.
struct MemoryLine {
  std::string what;
  std::int64_t bytes = 0;
};

/// Every byte that one rank holds, before anything is allocated: what `jubal plan` prints and what
/// start-up takes, of the GPU's memory where one computes.
struct MemoryPlan {
  StepLimits limits;
  std::int64_t weight_bytes = 0;
  // A packed model's weights take no memory of the rank's own: they are the part of the file that
  // it reads, in a page cache that the ranks of a node share.
  bool weights_mapped = false;
  std::int64_t kv_bytes = 0;
  std::int64_t activation_bytes = 0;
  std::int64_t segment_bytes = 0;  // for messages between ranks of one host; not on a GPU
  std::int64_t loading_bytes = 0;  // on a GPU, until the weights are there
  // Of the host, where a GPU computes: as long as the rank lives, and until the weights are there.
  std::int64_t pinned_bytes = 0;
  std::int64_t pinned_loading_bytes = 0;
  std::vector<MemoryLine> lines;  // the same bytes by kind, the host's last

  std::int64_t total() const {
    return weight_bytes + kv_bytes + activation_bytes + segment_bytes + loading_bytes;
  }
  std::int64_t own() const { return weights_mapped ? total() - weight_bytes : total(); }
};

/// Throws UserError (kConfig) when not even one page of KV fits.
StepLimits LimitsOf(const ModelDescription& model, const ParallelPlan& plan,
                    const ServingOptions& options);

MemoryPlan PlanMemory(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                      const ServingOptions& options);

/// The memory of one weight of the list, for whoever fills it.
struct WeightMemory {
  TensorView data;    // a matrix: u8, its layout's WeightBytes(); a vector: [k] f32
  TensorView scales;  // f32, or empty
};

/// Takes every weight of the list, in its order, from an arena of PlanMemory's weight_bytes, and
/// makes `weights` the view of it.
std::vector<WeightMemory> TakeWeights(const ModelSource& source, const ParallelPlan& plan,
                                      const Seat& seat, Arena& arena, Weights& weights);

/// Takes the buffers from an arena of PlanMemory's pinned_bytes.
PinnedRing TakePinned(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                      const ServingOptions& options, Arena& arena);

/// Takes the buffers from an arena of PlanMemory's activation_bytes.
Activations TakeActivations(const ModelSource& source, const ParallelPlan& plan, const Seat& seat,
                            const ServingOptions& options, Arena& arena);

/// Takes the KV pages from an arena of PlanMemory's kv_bytes, one KvLayer per layer.
std::vector<KvLayer> TakeKvLayers(const ModelDescription& model, const ParallelPlan& plan,
                                  const Seat& seat, const ServingOptions& options, Arena& arena);

ExchangeSizes ExchangeSizesOf(const ModelDescription& model, const StepLimits& limits,
                              Device device);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MEMORY_PLAN_H_

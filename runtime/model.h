#ifndef JUBAL_RUNTIME_MODEL_H_
#define JUBAL_RUNTIME_MODEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/gated_activation.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"
#include "parallel/plan.h"
#include "runtime/token.h"

namespace jubal {

class MappedFile;

/// The mathematics of one model, as numbers. What differs between families is here, as operands of
/// the one decoder page (decoder.cc), or is a weight that is absent.
struct ModelDescription {
  std::string family;  // "grok-1"
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // divides heads; query head h reads KV head h / (heads / kv_heads)
  std::int64_t head_dim = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  std::int64_t expert_hidden = 0;
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;  // most positions

  float norm_epsilon = 0.0f;
  float embedding_multiplier = 1.0f;
  float attention_scale = 1.0f;     // of q · k
  float attention_soft_cap = 0.0f;  // 0: none
  float logit_multiplier = 1.0f;
  double rope_theta = 10000.0;
  Activation activation = Activation::kGeluTanh;
  bool renormalize_router = false;  // the chosen experts' weights sum to one
  bool post_norms = false;          // norms on the attention's and the experts' results too
  bool tied_output = false;         // the output matrix is the embedding

  std::vector<TokenId> eos_ids;
};

/// Every weight of the decoder, by the part it plays.
enum class WeightRole : std::uint8_t {
  kEmbedding,
  kFinalNorm,
  kOutput,  // absent when tied
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kAttentionOut,
  kAttentionOutNorm,  // absent without post_norms
  kMoeNorm,
  kRouter,
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kMoeOutNorm,  // absent without post_norms
};

std::string_view NameOf(WeightRole role);  // "expert_gate"

/// How one weight is divided among ranks.
enum class Sharding : std::uint8_t {
  kReplicated,      // every rank holds all of it
  kByVocabulary,    // columns over the tensor group, in whole 64-column blocks
  kByHead,          // the query heads that the rank's chunks of the attention output touch
  kByKvHead,        // the KV heads that those query heads read
  kByHeadChunk,     // input rows: the rank's chunks
  kByExpertOutput,  // whole experts over the expert group, then the columns of the rank's chunks
  kByExpertInput,   // whole experts over the expert group, then the rank's chunks of rows
};

/// One weight of the list: what it is, whatever the checkpoint and the plan.
struct WeightSpec {
  WeightRole role = WeightRole::kEmbedding;
  std::int64_t layer = -1;  // −1: not in a layer
  Sharding sharding = Sharding::kReplicated;
  std::int64_t k = 0;  // rows: input features
  std::int64_t n = 0;  // columns: output features; 0 for a vector of k
  bool expert_stack = false;

  std::string Name() const;  // "layer 3 expert_gate", for messages and tables
};

/// The one list of weights, in the order of the forward pass. Loader, packer, budget, inspector and
/// tests walk it.
std::vector<WeightSpec> ListWeights(const ModelDescription& model);

/// How a weight is stored, in the checkpoint and in memory alike.
struct WeightFormat {
  WeightType type = WeightType::kF32;
  std::int64_t group_rows = 0;  // integers: rows per scale

  bool operator==(const WeightFormat&) const = default;
};

/// Query heads of the model that a rank computes, those that its chunks touch.
Range OwnedHeads(const ModelDescription& model, int tensor_index, int tensor_size);
/// KV heads that those read.
Range OwnedKvHeads(const ModelDescription& model, int tensor_index, int tensor_size);

/// Vocabulary ids whose embeddings and logits a rank holds: whole 64-column blocks.
Range OwnedVocabulary(std::int64_t vocabulary, int tensor_index, int tensor_size);

/// The part of a matrix that the rank in that seat holds. Requires spec.n > 0.
MatrixLayout LayoutOf(const WeightSpec& spec, const WeightFormat& format,
                      const ModelDescription& model, const ParallelPlan& plan, const Seat& seat);

/// All of a matrix, as a single rank holds it and a pack keeps it. Requires spec.n > 0.
MatrixLayout WholeLayoutOf(const WeightSpec& spec, const WeightFormat& format,
                           const ModelDescription& model);

/// The weights of one layer on one rank. Views: the memory belongs to the rank's arena, or to a
/// mapped file.
struct LayerWeights {
  ConstTensorView attention_norm;  // [hidden] f32
  PackedMatrix query;              // [hidden, heads · head_dim]
  PackedMatrix key;                // [hidden, kv_heads · head_dim]
  PackedMatrix value;
  PackedMatrix attention_out;          // [heads · head_dim, hidden]
  ConstTensorView attention_out_norm;  // [hidden] f32, or empty
  ConstTensorView moe_norm;            // [hidden] f32
  PackedMatrix router;                 // [hidden, experts]
  PackedMatrix expert_gate;            // experts × [hidden, expert_hidden]
  PackedMatrix expert_up;
  PackedMatrix expert_down;      // experts × [expert_hidden, hidden]
  ConstTensorView moe_out_norm;  // [hidden] f32, or empty
};

struct Weights {
  PackedMatrix embedding;  // packed as the output matrix: [hidden, vocabulary]
  ConstTensorView final_norm;
  PackedMatrix output;  // the embedding when tied
  std::vector<LayerWeights> layers;
  std::shared_ptr<const MappedFile> mapping;  // keeps a mapped file's bytes
};

/// Where a weight of the list lives. The first for specs with n > 0, the second for vectors.
PackedMatrix& MatrixOf(Weights& weights, const WeightSpec& spec);
ConstTensorView& VectorOf(Weights& weights, const WeightSpec& spec);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MODEL_H_

#ifndef JUBAL_RUNTIME_DECODER_H_
#define JUBAL_RUNTIME_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/arena.h"
#include "kernels/stream.h"
#include "parallel/expert_exchange.h"
#include "parallel/mesh.h"
#include "runtime/memory_plan.h"
#include "runtime/model.h"
#include "runtime/model_source.h"
#include "runtime/step_plan.h"
#include "runtime/weight_loader.h"

namespace jubal {

/// Called on the leader with logits [rows, vocabulary] f32 of entries first … first + rows − 1 of
/// all groups' logit_rows, counted through the groups in turn. Slices come in no fixed order of
/// groups. The view is valid during the call.
using LogitsSink = std::function<void(std::int64_t first, ConstTensorView logits)>;

/// Called on every rank, in every layer of a step, with the experts that were picked for each token
/// of the rank's data group: topk_ids [tokens, top_k] i32, valid during the call.
using RoutingObserver = std::function<void(std::int64_t layer, ConstTensorView topk_ids)>;

/// One model on one rank: its share of the weights, its KV pages, its buffers, and the forward
/// pass. All memory is taken by the constructor, as PlanMemory says. Not thread-safe; every rank of
/// the mesh makes the same calls.
class Decoder {
 public:
  /// Allocates and loads, or maps a packed model; one without files gets random weights.
  /// Collective. `mesh` must outlive the decoder. Throws UserError.
  Decoder(const ModelSource& source, const Mesh& mesh, const ServingOptions& options,
          const LoadProgress& progress);

  /// Computes one step: stores the keys and values of its rows and, for its logit_rows, hands the
  /// leader the logits of the next token. Collective.
  void Forward(const StepPlan& plan, const LogitsSink& sink);

  /// From now on `observer` sees the routing; an empty one ends that. For measurements: no result
  /// may depend on what it sees.
  void ObserveRouting(RoutingObserver observer) { routing_observer_ = std::move(observer); }

  const ModelDescription& model() const { return model_; }
  const MemoryPlan& memory() const { return memory_; }
  const StepLimits& limits() const { return memory_.limits; }
  const Mesh& mesh() const { return mesh_; }
  Stream& stream() { return stream_; }
  /// Leader: for the sampling operations.
  TensorView sample_workspace() const { return a_.sample_workspace; }
  /// All the bytes of this rank's weights, to read from.
  ConstTensorView weight_memory() const;
  /// The pages of keys and values, one KvLayer per layer.
  const std::vector<KvLayer>& kv_layers() const { return kv_; }

 private:
  void UploadInputs(const GroupStep& step);
  void EmbedTokens();
  void Layer(std::int64_t layer);
  void Attention(const LayerWeights& w, const KvLayer& pages);
  void Experts(std::int64_t layer, const LayerWeights& w);
  void Logits(const StepPlan& plan, const LogitsSink& sink);
  void GatherLogits(const StepPlan& plan, std::int64_t slice, std::int64_t rows,
                    const LogitsSink& sink);
  /// The first `tokens_` rows of a buffer.
  TensorView Tokens(TensorView buffer) const { return buffer.Rows(0, tokens_); }

  const ModelDescription model_;
  const Mesh& mesh_;
  const MemoryPlan memory_;
  Arena weight_arena_;
  Arena kv_arena_;
  Arena activation_arena_;
  Weights weights_;
  std::vector<KvLayer> kv_;
  Activations a_;
  std::unique_ptr<ExpertExchange> exchange_;
  Stream stream_;
  RoutingObserver routing_observer_;

  // The step under way.
  std::int64_t tokens_ = 0;
  TokenPlaces places_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_DECODER_H_

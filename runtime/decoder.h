#ifndef JUBAL_RUNTIME_DECODER_H_
#define JUBAL_RUNTIME_DECODER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/arena.h"
#include "kernels/gpu.h"
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
/// groups. The view is on the decoder's device, for what is run on its stream during the call.
using LogitsSink = std::function<void(std::int64_t first, ConstTensorView logits)>;

/// Called on every rank, for every layer of a step that has been computed, with the experts that
/// were picked for each token of the rank's data group: topk_ids [tokens, top_k] i32 on the host,
/// valid during the call.
using RoutingObserver = std::function<void(std::int64_t layer, ConstTensorView topk_ids)>;

/// One model on one rank: its share of the weights, its KV pages, its buffers, and the forward
/// pass, on the CPU or on a GPU. All memory is taken by the constructor, as PlanMemory says. Not
/// thread-safe; every rank of the mesh makes the same calls.
///
/// On a GPU, steps that only decode are recorded as graphs, each kind once, and then replayed. A
/// kind is a number of rows, the same in all data groups that have some: batches are filled up to
/// it with copies of their first row, which store what the row stores and read what it reads.
class Decoder {
 public:
  /// Allocates and loads, or maps a packed model; one without files gets random weights.
  /// Collective. `mesh` and `gpu`, which options.device calls for, must outlive the decoder. Throws
  /// UserError.
  Decoder(const ModelSource& source, const Mesh& mesh, const ServingOptions& options,
          const LoadProgress& progress, Gpu* gpu = nullptr);

  /// Computes one step: stores the keys and values of its rows and, for its logit_rows, hands the
  /// leader the logits of the next token. On a GPU it enqueues that and returns, `sink` included.
  /// Collective.
  void Forward(const StepPlan& plan, const LogitsSink& sink);

  /// Lets the next step refer to the tokens drawn in this one (IsPending, step_plan.h), of which
  /// there are `count`, before the host knows them. On a GPU, where LogitReader has drawn them.
  /// Collective.
  void ShareDrawn(std::int64_t count);

  /// Waits for all that was run on the stream. Throws as Communicator::Wait.
  void Wait() { mesh_.world->Wait(stream_); }

  /// Rows of the graphs that there can be, ascending: none where steps cannot be recorded.
  std::vector<std::int64_t> GraphRows() const;
  /// How many have been recorded.
  std::int64_t num_graphs() const { return static_cast<std::int64_t>(graphs_.size()); }

  /// From now on `observer` sees the routing; an empty one ends that. For measurements: no result
  /// may depend on what it sees.
  void ObserveRouting(RoutingObserver observer) { routing_observer_ = std::move(observer); }

  /// Stores keys and values [tokens, own KV heads · head_dim] f32, in host memory, at the places of
  /// the group's rows. For measurements.
  void StoreKeysAndValues(std::int64_t layer, const GroupStep& rows, ConstTensorView keys,
                          ConstTensorView values);

  const ModelDescription& model() const { return model_; }
  const MemoryPlan& memory() const { return memory_; }
  const StepLimits& limits() const { return memory_.limits; }
  const Mesh& mesh() const { return mesh_; }
  Stream& stream() { return stream_; }
  /// Leader: what LogitReader works with.
  const Activations& buffers() const { return a_; }
  const PinnedRing& pinned() const { return pinned_; }
  /// All the bytes of this rank's weights, to read from.
  ConstTensorView weight_memory() const;

 private:
  /// How many rows of each data group are computed, and of how many there are logits.
  struct Rows {
    std::vector<std::int64_t> tokens;
    std::vector<std::int64_t> logits;
  };

  Rows RowsOf(const StepPlan& plan) const;
  /// The rows with which the step's graph is recorded, if it has one.
  std::optional<Rows> GraphRowsOf(const StepPlan& plan) const;
  void UploadInputs(const GroupStep& step, std::int64_t tokens, std::int64_t logit_rows);
  /// The tokens that ShareDrawn has shared.
  ConstTensorView Drawn() const;
  void RunGraph();
  void Compute();  // what a graph holds

  void Layers();  // tokens → hidden
  void EmbedTokens();
  void Layer(std::int64_t layer);
  void Attention(const LayerWeights& w, const KvLayer& pages);
  void Experts(std::int64_t layer, const LayerWeights& w);
  void Logits(std::int64_t slice);
  void GatherLogits(std::int64_t slice);
  void HandOver(const StepPlan& plan, std::int64_t slice, const LogitsSink& sink);
  std::int64_t SliceRows(std::int64_t logit_rows, std::int64_t slice) const;
  void ReportRouting(std::int64_t tokens);
  /// The first `tokens_` rows of a buffer.
  TensorView Tokens(TensorView buffer) const { return buffer.Rows(0, tokens_); }

  const ModelDescription model_;
  const Mesh& mesh_;
  const MemoryPlan memory_;
  Arena weight_arena_;
  Arena kv_arena_;
  Arena activation_arena_;
  Arena pinned_arena_;
  Stream stream_;
  Weights weights_;
  std::vector<KvLayer> kv_;
  Activations a_;
  PinnedRing pinned_;
  // When one of these is done, the inputs of that number have left the pinned memory.
  std::array<std::unique_ptr<Stream>, std::tuple_size_v<PinnedRing>> uploads_;
  std::size_t next_upload_ = 0;
  std::unique_ptr<ExpertExchange> exchange_;
  bool records_graphs_ = false;
  std::map<std::vector<std::int64_t>, std::unique_ptr<GpuGraph>> graphs_;  // by Rows::tokens
  RoutingObserver routing_observer_;

  // The step under way.
  Rows rows_;
  std::int64_t tokens_ = 0;  // rows of this rank's data group
  TokenPlaces places_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_DECODER_H_

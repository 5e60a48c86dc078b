#ifndef JUBAL_RUNTIME_MODEL_SOURCE_H_
#define JUBAL_RUNTIME_MODEL_SOURCE_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/packed_matrix.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/pack_file.h"
#include "runtime/model.h"

namespace jubal {

struct Family;

/// Where one weight of the list lies in a checkpoint.
struct WeightFiles {
  std::vector<const StoredTensor*> tensors;  // one, or one per expert
  const StoredTensor* scales = nullptr;      // of a quantised weight
  bool output_major = false;                 // [N, K] instead of [K, N]

  /// One expert's matrix (expert 0 for a weight that is no stack), ready for PackMatrix.
  UnpackedMatrix Matrix(const WeightSpec& spec, const WeightFormat& format,
                        std::int64_t expert) const;
};

/// The shape of a model that exists only as numbers, for measurements.
struct SyntheticShape {
  std::int64_t hidden = 3072;
  std::int64_t heads = 24;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 128;
  std::int64_t experts = 8;
  std::int64_t top_k = 2;
  std::int64_t expert_hidden = 8192;
  std::int64_t layers = 8;
  std::int64_t vocabulary = 32768;
};

/// A model to be loaded, or only planned: its description, its list of weights and how each is
/// stored. Opening reads the files' headers; their data stays on disk.
class ModelSource {
 public:
  /// Opens a model directory: config.json (absent: Grok-1's published constants), weights in a pack
  /// or else in xAI's or a Hugging Face naming, perhaps tokenizer.model. Every weight must be there
  /// with the shape that the description gives, and nothing else may be. Weights that kernels take
  /// together must be stored alike. Throws UserError naming the culprit.
  static ModelSource Open(const std::filesystem::path& directory);

  /// A published model by name ("grok-1"), without files: for plans. Nothing for other names.
  static std::optional<ModelSource> Published(std::string_view name);

  /// A model of Grok-1's family and that shape, without files: its weights will be random. kInt8
  /// has Grok-1's scales, and embedding and output matrix in int8, too; the router is f32 always.
  /// Throws UserError (kUsage) for a shape that no kernel could work with.
  static ModelSource Synthetic(const SyntheticShape& shape, WeightType weights);

  const std::string& name() const { return name_; }  // the directory's, or the published name
  const ModelDescription& model() const { return model_; }
  const std::string& naming() const { return naming_; }  // whose tensor names the files use
  const std::vector<WeightSpec>& weights() const { return weights_; }
  /// Of weights()[i].
  const WeightFormat& format(std::size_t i) const { return formats_[i]; }
  /// Of weights()[i]. Requires a checkpoint.
  const WeightFiles& files(std::size_t i) const { return files_[i]; }
  bool has_files() const { return checkpoint_.has_value(); }     // of a checkpoint
  const Checkpoint& checkpoint() const { return *checkpoint_; }  // requires files
  bool packed() const { return pack_.has_value(); }
  /// Its weights in the order of weights(). Requires a packed model.
  const Pack& pack() const { return *pack_; }
  /// Of all weights as stored, in bytes.
  std::int64_t stored_bytes() const;
  const std::optional<std::filesystem::path>& tokenizer() const { return tokenizer_; }

 private:
  ModelSource() = default;

  void TakeCheckpoint(const std::filesystem::path& directory, const Family& family);
  void TakePack(const std::filesystem::path& file);
  void CheckFusedFormats() const;
  std::string StoredName(std::size_t i) const;  // of weights()[i], for messages

  std::string name_;
  std::string naming_;
  ModelDescription model_;
  std::vector<WeightSpec> weights_;
  std::vector<WeightFormat> formats_;
  std::vector<WeightFiles> files_;
  std::optional<Checkpoint> checkpoint_;
  std::optional<Pack> pack_;
  std::optional<std::filesystem::path> tokenizer_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MODEL_SOURCE_H_

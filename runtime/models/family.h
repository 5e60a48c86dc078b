#ifndef JUBAL_RUNTIME_MODELS_FAMILY_H_
#define JUBAL_RUNTIME_MODELS_FAMILY_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model.h"
#include "runtime/models/config.h"

namespace jubal {

/// One way in which published checkpoints of a family name their tensors.
struct Naming {
  std::string_view label;  // "keyfan/grok-1-hf", for messages
  CheckpointFormat format = CheckpointFormat::kSafetensors;
  bool output_major = true;  // matrices are [out, in]; the embedding is [vocabulary, hidden] always
  bool stacked_experts = false;  // one tensor holds all experts, [experts, in, out]
  /// The tensor's name; `expert` counts only for expert weights that are not stacked.
  std::string (*name_of)(const ModelDescription& model, const WeightSpec& spec,
                         std::int64_t expert) = nullptr;
};

/// A model family: facts, not code paths. To add one: a file beside this with its config keys and
/// names, and a row in families.cc.
struct Family {
  std::string_view name;
  /// Values of config.json's model_type and architectures that mean this family.
  std::span<const std::string_view> model_types;
  /// Reads the family's config.json. Throws UserError (kBadData) naming the key.
  ModelDescription (*describe)(const Config& config) = nullptr;
  /// The format in which the family's weights are published, for plans without files.
  WeightFormat (*published_format)(const WeightSpec& spec) = nullptr;
  std::span<const Naming> namings;
};

std::span<const Family> Families();

extern const Family kGrok1;
extern const Family kMixtral;

/// Grok-1's published constants: a directory without config.json means these.
ModelDescription Grok1Published();

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MODELS_FAMILY_H_

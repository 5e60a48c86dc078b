// Mixtral. Source of the facts: Hugging Face transformers, MixtralConfig and MixtralForCausalLM.

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/models/family.h"

namespace jubal {
namespace {

constexpr std::array<std::string_view, 2> kModelTypes{"mixtral", "MixtralForCausalLM"};

ModelDescription Describe(const Config& config) {
  config.Refuse("quantization_config");
  config.Refuse("sliding_window");
  if (const std::string activation = config.Text("hidden_act", "silu"); activation != "silu") {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{}: \"hidden_act\" is {}, not silu", config.file(), activation));
  }
  ModelDescription m;
  m.family = "mixtral";
  m.layers = config.Size({"num_hidden_layers"});
  m.hidden = config.Size({"hidden_size"});
  m.heads = config.Size({"num_attention_heads"});
  m.kv_heads = config.Size({"num_key_value_heads"}, m.heads);
  m.head_dim = config.Size({"head_dim"}, std::max<std::int64_t>(1, m.hidden / m.heads));
  m.experts = config.Size({"num_local_experts"}, 8);
  m.top_k = config.Size({"num_experts_per_tok"}, 2);
  m.expert_hidden = config.Size({"intermediate_size"});
  m.vocabulary = config.Size({"vocab_size"});
  m.context = config.Size({"max_position_embeddings"});
  m.norm_epsilon = static_cast<float>(config.Number({"rms_norm_eps"}, 1e-5));
  m.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(m.head_dim)));
  m.rope_theta = config.RopeTheta(1e6);
  m.activation = Activation::kSilu;
  m.renormalize_router = true;
  m.post_norms = false;
  m.tied_output = config.Flag("tie_word_embeddings", false);
  m.eos_ids = config.Ids("eos_token_id");
  return m;
}

WeightFormat PublishedFormat(const WeightSpec&) { return {WeightType::kBf16, 0}; }

std::string Name(const ModelDescription&, const WeightSpec& spec, std::int64_t expert) {
  using enum WeightRole;
  const std::string layer = fmt::format("model.layers.{}.", spec.layer);
  const auto moe = [&](std::string_view matrix) {
    return fmt::format("{}block_sparse_moe.experts.{}.{}.weight", layer, expert, matrix);
  };
  switch (spec.role) {
    case kEmbedding:
      return "model.embed_tokens.weight";
    case kOutput:
      return "lm_head.weight";
    case kFinalNorm:
      return "model.norm.weight";
    case kQuery:
      return layer + "self_attn.q_proj.weight";
    case kKey:
      return layer + "self_attn.k_proj.weight";
    case kValue:
      return layer + "self_attn.v_proj.weight";
    case kAttentionOut:
      return layer + "self_attn.o_proj.weight";
    case kRouter:
      return layer + "block_sparse_moe.gate.weight";
    case kExpertGate:
      return moe("w1");
    case kExpertUp:
      return moe("w3");
    case kExpertDown:
      return moe("w2");
    case kAttentionNorm:
      return layer + "input_layernorm.weight";
    case kMoeNorm:
      return layer + "post_attention_layernorm.weight";
    case kAttentionOutNorm:
    case kMoeOutNorm:
      break;  // Mixtral norms only what goes in
  }
  CheckFailed(__FILE__, __LINE__, "Mixtral has no " + spec.Name());
}

constexpr std::array<Naming, 1> kNamings{
    Naming{"mistralai/Mixtral-8x7B", CheckpointFormat::kSafetensors,
           /*output_major=*/true, /*stacked_experts=*/false, &Name}};

}  // namespace

const Family kMixtral{"mixtral", kModelTypes, &Describe, &PublishedFormat, kNamings};

}  // namespace jubal

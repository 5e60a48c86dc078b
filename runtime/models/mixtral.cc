// Mixtral. Source of the facts: Hugging Face transformers, MixtralConfig and MixtralForCausalLM.

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "kernels/error.h"
#include "runtime/models/family.h"
#include "runtime/models/llama_names.h"

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

constexpr LlamaNames kNames{.attention = "self_attn",
                            .router = "block_sparse_moe.gate",
                            .experts = "block_sparse_moe.experts",
                            .gate = "w1",
                            .up = "w3",
                            .down = "w2",
                            .attention_norm = "input_layernorm",
                            .attention_out_norm = {},  // Mixtral norms only what goes in
                            .moe_norm = "post_attention_layernorm",
                            .moe_out_norm = {},
                            .norm_suffix = "weight"};

std::string Name(const ModelDescription&, const WeightSpec& spec, std::int64_t expert) {
  return LlamaName(kNames, spec, expert);
}

constexpr std::array<Naming, 1> kNamings{
    Naming{"mistralai/Mixtral-8x7B", CheckpointFormat::kSafetensors,
           /*output_major=*/true, /*stacked_experts=*/false, &Name}};

}  // namespace

const Family kMixtral{"mixtral", kModelTypes, &Describe, &PublishedFormat, kNamings};

}  // namespace jubal

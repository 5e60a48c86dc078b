// Grok-1. Source of the facts: xai-org/grok-1, run.py, model.py and checkpoint.py.

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/models/family.h"
#include "runtime/models/llama_names.h"

namespace jubal {
namespace {

constexpr std::array<std::string_view, 6> kModelTypes{
    "grok-1", "grok1", "grok", "Grok1ForCausalLM", "Grok1ModelForCausalLM", "GrokForCausalLM"};

/// Width of an expert: 2/3 of widening · hidden, rounded up to a multiple of 8 (model.py,
/// ffn_size).
std::int64_t ExpertHidden(double widening, std::int64_t hidden) {
  const auto width = static_cast<std::int64_t>(widening * static_cast<double>(hidden)) * 2 / 3;
  return (width + 7) / 8 * 8;
}

ModelDescription Describe(const Config& config) {
  config.Refuse("quantization_config");
  config.Refuse("residual_moe");  // Grok-2's dense branch
  constexpr double kNone = 0.0;
  ModelDescription m;
  m.family = "grok-1";
  m.layers = config.Size({"num_hidden_layers", "num_layers"});
  m.hidden = config.Size({"hidden_size", "emb_size"});
  m.heads = config.Size({"num_attention_heads"});
  m.kv_heads = config.Size({"num_key_value_heads"}, m.heads);
  m.head_dim = config.Size({"head_dim"}, std::max<std::int64_t>(1, m.hidden / m.heads));
  m.experts = config.Size({"num_experts", "num_local_experts"}, 8);
  m.top_k = config.Size({"num_experts_per_tok", "num_selected_experts"}, 2);
  m.expert_hidden = config.Has({"intermediate_size"})
                        ? config.Size({"intermediate_size"})
                        : ExpertHidden(config.Number({"widening_factor"}), m.hidden);
  m.vocabulary = config.Size({"vocab_size"});
  m.context = config.Size({"max_position_embeddings"}, 8192);
  m.norm_epsilon = static_cast<float>(config.Number({"rms_norm_eps"}, 1e-5));
  m.embedding_multiplier = static_cast<float>(
      config.Number({"embedding_multiplier_scale"}, std::sqrt(static_cast<double>(m.hidden))));
  m.attention_scale = static_cast<float>(
      config.Number({"attn_output_multiplier"}, 1.0 / std::sqrt(static_cast<double>(m.head_dim))));
  // 30 is a constant in model.py, not a setting.
  m.attention_soft_cap =
      static_cast<float>(config.Number({"attn_logit_softcapping", "max_attn_value"}, 30.0));
  m.logit_multiplier =
      static_cast<float>(config.Number({"output_multiplier_scale"}, 1.0 / std::sqrt(3.0)));
  m.rope_theta = config.RopeTheta(10000.0);
  m.activation = Activation::kGeluTanh;
  m.renormalize_router = false;
  m.post_norms = true;
  m.tied_output = true;
  m.eos_ids = config.Has({"eos_token_id"}) ? config.Ids("eos_token_id") : std::vector<TokenId>{2};
  for (const auto key : {"final_logit_softcapping", "router_logit_softcapping"}) {
    if (config.Number({key}, kNone) != kNone) config.Refuse(key);
  }
  return m;
}

WeightFormat PublishedFormat(const WeightSpec& spec) {
  using enum WeightRole;
  switch (spec.role) {
    case kQuery:
    case kKey:
    case kValue:
    case kExpertGate:
    case kExpertUp:
      return {WeightType::kInt8, spec.k};
    case kAttentionOut:
    case kExpertDown:
      return {WeightType::kInt8, spec.k / kChunks};
    default:
      return {WeightType::kF32, 0};
  }
}

/// xAI numbers its files in the order of the parameters' paths sorted as text: layers 0, 1, 10, 11,
/// …, 2, 20, … and twelve weights in each.
std::string Ckpt0Name(const ModelDescription& model, const WeightSpec& spec, std::int64_t) {
  using enum WeightRole;
  if (spec.role == kEmbedding || spec.role == kOutput) return "tensor00000_000";
  if (spec.role == kFinalNorm) return "tensor00001_000";
  constexpr std::array kSlots{kExpertGate,       kExpertDown, kExpertUp,   kKey,
                              kAttentionOut,     kQuery,      kValue,      kAttentionNorm,
                              kAttentionOutNorm, kMoeNorm,    kMoeOutNorm, kRouter};
  std::int64_t layer_rank = 0;  // among the names "decoder_layer_N" sorted as text
  const std::string own = fmt::format("{}", spec.layer);
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    layer_rank += fmt::format("{}", layer) < own ? 1 : 0;
  }
  const auto slot = std::find(kSlots.begin(), kSlots.end(), spec.role);
  CHECK(slot != kSlots.end());
  return fmt::format("tensor{:05d}_000", 2 + static_cast<std::int64_t>(kSlots.size()) * layer_rank +
                                             (slot - kSlots.begin()));
}

// keyfan/grok-1-hf: the official module paths.
std::string KeyfanName(const ModelDescription&, const WeightSpec& spec, std::int64_t expert) {
  using enum WeightRole;
  const std::string layer = fmt::format("transformer.decoder_layer.{}.", spec.layer);
  const auto moe = [&](std::string_view matrix) {
    return fmt::format("{}moe.{}.{}.weight", layer, expert, matrix);
  };
  switch (spec.role) {
    case kEmbedding:
      return "transformer.in_out_embed.weight";
    case kOutput:
      return "lm_head.weight";
    case kFinalNorm:
      return "transformer.rms_norm.weight";
    case kQuery:
      return layer + "multi_head_attention.query.weight";
    case kKey:
      return layer + "multi_head_attention.key.weight";
    case kValue:
      return layer + "multi_head_attention.value.weight";
    case kAttentionOut:
      return layer + "multi_head_attention.linear.weight";
    case kRouter:
      return layer + "router.weight";
    case kExpertGate:
      return moe("linear");
    case kExpertUp:
      return moe("linear_v");
    case kExpertDown:
      return moe("linear_1");
    case kAttentionNorm:
      return layer + "rms_norm.weight";
    case kAttentionOutNorm:
      return layer + "rms_norm_1.weight";
    case kMoeNorm:
      return layer + "rms_norm_2.weight";
    case kMoeOutNorm:
      return layer + "rms_norm_3.weight";
  }
  CheckFailed(__FILE__, __LINE__, "unknown role");
}

constexpr LlamaNames kHpcai{.attention = "attn",
                            .router = "moe_block.gate",
                            .experts = "moe_block.experts",
                            .gate = "linear",
                            .up = "linear_v",
                            .down = "linear_1",
                            .attention_norm = "pre_attn_norm",
                            .attention_out_norm = "post_attn_norm",
                            .moe_norm = "pre_moe_norm",
                            .moe_out_norm = "post_moe_norm",
                            .norm_suffix = "scale"};

std::string HpcaiName(const ModelDescription&, const WeightSpec& spec, std::int64_t expert) {
  return LlamaName(kHpcai, spec, expert);
}

constexpr LlamaNames kLmzheng{.attention = "self_attn",
                              .router = "block_sparse_moe.gate",
                              .experts = "block_sparse_moe.experts",
                              .gate = "w1",
                              .up = "w3",
                              .down = "w2",
                              .attention_norm = "pre_attn_norm",
                              .attention_out_norm = "post_attn_norm",
                              .moe_norm = "pre_moe_norm",
                              .moe_out_norm = "post_moe_norm",
                              .norm_suffix = "weight"};

std::string LmzhengName(const ModelDescription&, const WeightSpec& spec, std::int64_t expert) {
  return LlamaName(kLmzheng, spec, expert);
}

constexpr std::array<Naming, 4> kNamings{
    Naming{"xai-org/grok-1", CheckpointFormat::kCkpt0, /*output_major=*/false,
           /*stacked_experts=*/true, &Ckpt0Name},
    Naming{"keyfan/grok-1-hf", CheckpointFormat::kSafetensors, /*output_major=*/true,
           /*stacked_experts=*/false, &KeyfanName},
    Naming{"hpcai-tech/grok-1", CheckpointFormat::kSafetensors, /*output_major=*/true,
           /*stacked_experts=*/false, &HpcaiName},
    Naming{"lmzheng/grok-1", CheckpointFormat::kSafetensors, /*output_major=*/true,
           /*stacked_experts=*/false, &LmzhengName},
};

}  // namespace

const Family kGrok1{"grok-1", kModelTypes, &Describe, &PublishedFormat, kNamings};

ModelDescription Grok1Published() {
  ModelDescription m;
  m.family = "grok-1";
  m.layers = 64;
  m.hidden = 6144;
  m.heads = 48;
  m.kv_heads = 8;
  m.head_dim = 128;
  m.experts = 8;
  m.top_k = 2;
  m.expert_hidden = ExpertHidden(8, m.hidden);  // 32768
  m.vocabulary = 131072;
  m.context = 8192;
  m.norm_epsilon = 1e-5f;
  m.embedding_multiplier = 78.38367176906169f;  // √6144
  m.attention_scale = 0.08838834764831845f;     // 1/√128
  m.attention_soft_cap = 30.0f;
  m.logit_multiplier = 0.5773502691896257f;  // 1/√3
  m.rope_theta = 10000.0;
  m.activation = Activation::kGeluTanh;
  m.post_norms = true;
  m.tied_output = true;
  m.eos_ids = {2};
  return m;
}

}  // namespace jubal

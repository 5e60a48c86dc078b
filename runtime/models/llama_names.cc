#include "runtime/models/llama_names.h"

#include <fmt/format.h>

#include "kernels/check.h"

namespace jubal {

std::string LlamaName(const LlamaNames& names, const WeightSpec& spec, std::int64_t expert) {
  using enum WeightRole;
  const std::string layer = fmt::format("model.layers.{}.", spec.layer);
  const auto attention = [&](std::string_view matrix) {
    return fmt::format("{}{}.{}_proj.weight", layer, names.attention, matrix);
  };
  const auto moe = [&](std::string_view matrix) {
    return fmt::format("{}{}.{}.{}.weight", layer, names.experts, expert, matrix);
  };
  const auto norm = [&](std::string_view name) {
    return fmt::format("{}{}.{}", layer, name, names.norm_suffix);
  };
  switch (spec.role) {
    case kEmbedding:
      return "model.embed_tokens.weight";
    case kOutput:
      return "lm_head.weight";
    case kFinalNorm:
      return fmt::format("model.norm.{}", names.norm_suffix);
    case kQuery:
      return attention("q");
    case kKey:
      return attention("k");
    case kValue:
      return attention("v");
    case kAttentionOut:
      return attention("o");
    case kRouter:
      return fmt::format("{}{}.weight", layer, names.router);
    case kExpertGate:
      return moe(names.gate);
    case kExpertUp:
      return moe(names.up);
    case kExpertDown:
      return moe(names.down);
    case kAttentionNorm:
      return norm(names.attention_norm);
    case kAttentionOutNorm:
      return norm(names.attention_out_norm);
    case kMoeNorm:
      return norm(names.moe_norm);
    case kMoeOutNorm:
      return norm(names.moe_out_norm);
  }
  CheckFailed(__FILE__, __LINE__, "unknown role");
}

}  // namespace jubal

#ifndef JUBAL_RUNTIME_MODELS_LLAMA_NAMES_H_
#define JUBAL_RUNTIME_MODELS_LLAMA_NAMES_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/model.h"

namespace jubal {

/// What differs between checkpoints that name their tensors as Llama's do, "model.layers.N.…".
struct LlamaNames {
  std::string_view attention;  // "self_attn": of {q,k,v,o}_proj
  std::string_view router;
  std::string_view experts;
  std::string_view gate, up, down;  // of one expert
  std::string_view attention_norm, attention_out_norm, moe_norm, moe_out_norm;
  std::string_view norm_suffix;  // "weight"
};

/// The tensor's name; `expert` counts only for expert weights. Families without post-norms never
/// ask for theirs.
std::string LlamaName(const LlamaNames& names, const WeightSpec& spec, std::int64_t expert);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MODELS_LLAMA_NAMES_H_

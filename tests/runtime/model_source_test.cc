#include "runtime/model_source.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/safetensors_file.h"
#include "tests/runtime/checkpoint/scratch_directory.h"

namespace jubal {
namespace {

constexpr const char* kConfig = R"({
  "architectures": ["Grok1ForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8, "head_dim": 4,
  "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 1, "num_experts_per_tok": 1,
  "intermediate_size": 16, "vocab_size": 32})";

/// How one conversion calls the parts of a model of one layer and one expert.
struct Names {
  std::string embedding, final_norm, layer, query, key, value, out, router, gate, up, down;
  std::vector<std::string> norms;
};

const std::map<std::string, Names> kNames{
    {"keyfan/grok-1-hf",
     {"transformer.in_out_embed.weight",
      "transformer.rms_norm.weight",
      "transformer.decoder_layer.0.",
      "multi_head_attention.query.weight",
      "multi_head_attention.key.weight",
      "multi_head_attention.value.weight",
      "multi_head_attention.linear.weight",
      "router.weight",
      "moe.0.linear.weight",
      "moe.0.linear_v.weight",
      "moe.0.linear_1.weight",
      {"rms_norm.weight", "rms_norm_1.weight", "rms_norm_2.weight", "rms_norm_3.weight"}}},
    {"hpcai-tech/grok-1",
     {"model.embed_tokens.weight",
      "model.norm.scale",
      "model.layers.0.",
      "attn.q_proj.weight",
      "attn.k_proj.weight",
      "attn.v_proj.weight",
      "attn.o_proj.weight",
      "moe_block.gate.weight",
      "moe_block.experts.0.linear.weight",
      "moe_block.experts.0.linear_v.weight",
      "moe_block.experts.0.linear_1.weight",
      {"pre_attn_norm.scale", "post_attn_norm.scale", "pre_moe_norm.scale",
       "post_moe_norm.scale"}}},
    {"lmzheng/grok-1",
     {"model.embed_tokens.weight",
      "model.norm.weight",
      "model.layers.0.",
      "self_attn.q_proj.weight",
      "self_attn.k_proj.weight",
      "self_attn.v_proj.weight",
      "self_attn.o_proj.weight",
      "block_sparse_moe.gate.weight",
      "block_sparse_moe.experts.0.w1.weight",
      "block_sparse_moe.experts.0.w3.weight",
      "block_sparse_moe.experts.0.w2.weight",
      {"pre_attn_norm.weight", "post_attn_norm.weight", "pre_moe_norm.weight",
       "post_moe_norm.weight"}}},
};

using Shapes = std::map<std::string, std::vector<std::size_t>>;

Shapes ShapesOf(const Names& names) {
  Shapes shapes{{names.embedding, {32, 8}},           {names.final_norm, {8}},
                {names.layer + names.query, {8, 8}},  {names.layer + names.key, {4, 8}},
                {names.layer + names.value, {4, 8}},  {names.layer + names.out, {8, 8}},
                {names.layer + names.router, {1, 8}}, {names.layer + names.gate, {16, 8}},
                {names.layer + names.up, {16, 8}},    {names.layer + names.down, {8, 16}}};
  for (const std::string& norm : names.norms) shapes[names.layer + norm] = {8};
  return shapes;
}

/// All bf16, but for one tensor that may be f32.
std::string Bf16File(const Shapes& shapes, const std::string& in_f32 = "") {
  nlohmann::json header;
  std::size_t end = 0;
  for (const auto& [name, shape] : shapes) {
    const std::size_t begin = end;
    end += (name == in_f32 ? 4 : 2) * shape[0] * (shape.size() > 1 ? shape[1] : 1);
    header[name] = {{"dtype", name == in_f32 ? "F32" : "BF16"},
                    {"shape", shape},
                    {"data_offsets", {begin, end}}};
  }
  return SafetensorsFile(header.dump(), end);
}

// Two of the three namings call the embedding the same.
TEST(ModelSourceTest, KnowsTheNamingsOfGrok1) {
  for (const auto& [label, names] : kNames) {
    SCOPED_TRACE(label);
    const ScratchDirectory scratch;
    scratch.Write("config.json", kConfig);
    scratch.Write("model.safetensors", Bf16File(ShapesOf(names)));
    const ModelSource source = ModelSource::Open(scratch.path());
    EXPECT_EQ(source.naming(), label);
    EXPECT_TRUE(source.model().tied_output);
    const WeightSpec& query = source.weights()[2];
    ASSERT_EQ(query.role, WeightRole::kQuery);
    EXPECT_TRUE(source.files(2).output_major);
  }
}

// All of them store the output matrix although the model is tied.
TEST(ModelSourceTest, TakesAnOutputMatrixThatIsThere) {
  for (const auto& [label, names] : kNames) {
    SCOPED_TRACE(label);
    const ScratchDirectory scratch;
    scratch.Write("config.json", kConfig);
    Shapes shapes = ShapesOf(names);
    shapes["lm_head.weight"] = {32, 8};
    scratch.Write("model.safetensors", Bf16File(shapes));
    EXPECT_FALSE(ModelSource::Open(scratch.path()).model().tied_output);
  }
}

// A truncated download: the user looks for the name that the files use.
TEST(ModelSourceTest, NamesAMissingWeightAsTheFilesWould) {
  for (const auto& [label, names] : kNames) {
    for (const std::string& missing : {names.embedding, names.final_norm, names.layer + names.gate,
                                       names.layer + names.norms[0]}) {
      SCOPED_TRACE(missing);
      const ScratchDirectory scratch;
      scratch.Write("config.json", kConfig);
      Shapes shapes = ShapesOf(names);
      shapes.erase(missing);
      scratch.Write("model.safetensors", Bf16File(shapes));
      ExpectUserError(ExitStatus::kBadData, [&scratch] { ModelSource::Open(scratch.path()); },
                      {missing});
    }
  }
}

TEST(ModelSourceTest, MakesUpAModelOfGrok1sFamily) {
  const SyntheticShape shape{.layers = 3};
  const ModelSource source = ModelSource::Synthetic(shape, WeightType::kInt8);
  EXPECT_FALSE(source.has_files());
  EXPECT_EQ(source.model().layers, 3);
  EXPECT_EQ(source.model().attention_soft_cap, 30.0f);
  EXPECT_TRUE(source.model().tied_output && source.model().post_norms);
  for (std::size_t i = 0; i < source.weights().size(); ++i) {
    const WeightSpec& spec = source.weights()[i];
    const bool f32 = spec.n == 0 || spec.role == WeightRole::kRouter;
    const bool by_input =
        spec.role == WeightRole::kAttentionOut || spec.role == WeightRole::kExpertDown;
    const WeightFormat format =
        f32 ? WeightFormat{} : WeightFormat{WeightType::kInt8, by_input ? spec.k / 8 : spec.k};
    EXPECT_EQ(source.format(i), format) << spec.Name();
  }
}

TEST(ModelSourceTest, RefusesAShapeThatNothingCouldCompute) {
  const auto refuse = [](const SyntheticShape& shape, const std::string& culprit) {
    ExpectUserError(ExitStatus::kUsage,
                    [&shape] { ModelSource::Synthetic(shape, WeightType::kInt8); }, {culprit});
  };
  refuse({.kv_heads = 5}, "5 KV heads do not divide 24 query heads");
  refuse({.head_dim = 127}, "head_dim 127");
  refuse({.experts = 2, .top_k = 3}, "3 experts per token of only 2");
  refuse({.expert_hidden = 100}, "expert width 100 is no multiple of 8");
}

// Kernels multiply query, key and value in one go, and an expert's gate and up: mixed types would
// end the process in the middle of a request.
TEST(ModelSourceTest, RefusesFusedWeightsOfDifferentTypes) {
  const Names& names = kNames.at("keyfan/grok-1-hf");
  const auto open_with_f32 = [&](const std::string& tensor) {
    const ScratchDirectory scratch;
    scratch.Write("config.json", kConfig);
    scratch.Write("model.safetensors", Bf16File(ShapesOf(names), tensor));
    return ModelSource::Open(scratch.path());
  };
  const std::vector<std::array<std::string, 3>> cases{// in f32, and the two that the message names
                                                      {names.query, names.query, names.key},
                                                      {names.key, names.query, names.key},
                                                      {names.value, names.query, names.value},
                                                      {names.gate, names.gate, names.up},
                                                      {names.up, names.gate, names.up}};
  for (const auto& [in_f32, first, other] : cases) {
    SCOPED_TRACE(in_f32);
    ExpectUserError(ExitStatus::kBadData, [&, name = in_f32] { open_with_f32(names.layer + name); },
                    {names.layer + first, names.layer + other, "f32", "bf16", "stored alike"});
  }
  EXPECT_NO_THROW(open_with_f32(names.layer + names.out));
  EXPECT_NO_THROW(open_with_f32(names.layer + names.router));
}

TEST(ModelSourceTest, RefusesNamesOfNoKnownConversion) {
  const ScratchDirectory scratch;
  scratch.Write("config.json", kConfig);
  scratch.Write("model.safetensors", Bf16File({{"wte.weight", {32, 8}}}));
  ExpectUserError(ExitStatus::kBadData, [&scratch] { ModelSource::Open(scratch.path()); },
                  {"no weight under any name known for grok-1"});
}

}  // namespace
}  // namespace jubal

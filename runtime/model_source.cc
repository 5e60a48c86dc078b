#include "runtime/model_source.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/models/family.h"

namespace jubal {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void BadData(const std::string& message) {
  throw UserError(ExitStatus::kBadData, message);
}

const Family& FamilyOf(const Config& config) {
  const std::vector<std::string> types = config.ModelTypes();
  for (const Family& family : Families()) {
    for (const std::string& type : types) {
      if (std::find(family.model_types.begin(), family.model_types.end(), type) !=
          family.model_types.end()) {
        return family;
      }
    }
  }
  BadData(fmt::format("{}: no model_type or architecture that is served (found: {})", config.file(),
                      types.empty() ? "none" : fmt::format("{}", fmt::join(types, ", "))));
}

/// What no kernel or plan could work with, whatever the family. `origin` is whom to blame.
void CheckDescription(const ModelDescription& m, const std::string& origin, ExitStatus status) {
  constexpr std::int64_t kMaxWidth = 1 << 24;
  constexpr std::int64_t kMaxHeadDim = 256;
  const auto require = [&](bool holds, const std::string& problem) {
    if (!holds) throw UserError(status, fmt::format("{}: {}", origin, problem));
  };
  require(m.layers <= 4096, fmt::format("{} layers", m.layers));
  for (const auto& [what, size] : {std::pair{"hidden width", m.hidden},
                                   {"attention width", m.heads},
                                   {"expert width", m.expert_hidden},
                                   {"vocabulary", m.vocabulary},
                                   {"context", m.context}}) {
    require(size <= kMaxWidth, fmt::format("{} {} is above {}", what, size, kMaxWidth));
  }
  require(m.head_dim <= kMaxHeadDim && m.head_dim % 2 == 0,
          fmt::format("head_dim {} is odd or above {}", m.head_dim, kMaxHeadDim));
  require(m.heads * m.head_dim <= kMaxWidth, "attention is too wide");
  require(m.kv_heads <= m.heads && m.heads % m.kv_heads == 0,
          fmt::format("{} KV heads do not divide {} query heads", m.kv_heads, m.heads));
  require(m.experts <= 1024, fmt::format("{} experts", m.experts));
  require(m.top_k <= m.experts, fmt::format("{} experts per token of only {}", m.top_k, m.experts));
  require(m.norm_epsilon > 0, "rms_norm_eps is not positive");
  require(m.attention_soft_cap >= 0, "the attention soft cap is negative");
  for (const TokenId id : m.eos_ids) {
    require(id < m.vocabulary,
            fmt::format("eos_token_id {} is outside the vocabulary of {}", id, m.vocabulary));
  }
}

std::string FileOf(const StoredTensor& tensor) { return tensor.file->path().string(); }

WeightType TypeOf(const StoredTensor& tensor) {
  switch (tensor.dtype) {
    case DType::kF32:
      return WeightType::kF32;
    case DType::kBf16:
      return WeightType::kBf16;
    case DType::kI8:
      return WeightType::kInt8;
    default:
      BadData(fmt::format("{}: {} has dtype {}; f32, bf16 and int8 with scales are served",
                          FileOf(tensor), tensor.name, NameOf(tensor.dtype)));
  }
}

void CheckShape(const StoredTensor& tensor, const std::vector<std::int64_t>& expected,
                const WeightSpec& spec) {
  if (tensor.shape == expected) return;
  BadData(fmt::format("{}: {} ({}) has shape {}, expected {}", FileOf(tensor), tensor.name,
                      spec.Name(), ShapeText(tensor.shape), ShapeText(expected)));
}

/// Rows per scale of a quantised weight, from the shape of its scales: [(experts,) groups, N].
std::int64_t GroupRows(const StoredTensor& scales, const WeightSpec& spec,
                       const ModelDescription& model) {
  std::vector<std::int64_t> expected = scales.shape;
  const std::size_t axis = spec.expert_stack ? 1 : 0;
  const std::int64_t groups = expected.size() == axis + 2 ? expected[axis] : 0;
  if (groups < 1 || spec.k % groups != 0) {
    BadData(fmt::format("{}: {} ({}) has shape {}: its groups do not divide {} rows",
                        FileOf(scales), scales.name, spec.Name(), ShapeText(scales.shape), spec.k));
  }
  expected[axis + 1] = spec.n;
  if (spec.expert_stack) expected[0] = model.experts;
  CheckShape(scales, expected, spec);
  if (scales.dtype != DType::kBf16) {
    BadData(fmt::format("{}: {} has dtype {}, expected bf16", FileOf(scales), scales.name,
                        NameOf(scales.dtype)));
  }
  return spec.k / groups;
}

struct Found {
  WeightFiles files;
  WeightFormat format;
};

/// Finds one weight of the list and holds it against its spec.
Found FindWeight(const Checkpoint& checkpoint, const Naming& naming, const WeightSpec& spec,
                 const ModelDescription& model) {
  const bool stacked = spec.expert_stack && naming.stacked_experts;
  const bool embedding = spec.role == WeightRole::kEmbedding || spec.role == WeightRole::kOutput;
  Found found;
  found.files.output_major = naming.output_major || embedding;

  std::vector<std::int64_t> shape;
  if (spec.n == 0) {
    shape = {spec.k};
  } else {
    shape = {spec.k, spec.n};
    if (found.files.output_major) std::swap(shape[0], shape[1]);
    if (stacked) shape.insert(shape.begin(), model.experts);
  }
  const std::int64_t tensors = spec.expert_stack && !stacked ? model.experts : 1;
  for (std::int64_t expert = 0; expert < tensors; ++expert) {
    const std::string name = naming.name_of(model, spec, expert);
    const StoredTensor* tensor = checkpoint.Find(name);
    if (tensor == nullptr) {
      BadData(fmt::format("{}: {} ({}) is missing", checkpoint.directory().string(), name,
                          spec.Name()));
    }
    CheckShape(*tensor, shape, spec);
    WeightFormat format{TypeOf(*tensor), 0};
    const StoredTensor* scales = checkpoint.Find(name + "/scales");
    if ((format.type == WeightType::kInt8) != (scales != nullptr) ||
        (scales != nullptr && (spec.n == 0 || embedding))) {
      BadData(fmt::format("{}: {} ({}) is {} {} scales", FileOf(*tensor), name, spec.Name(),
                          NameOf(tensor->dtype), scales == nullptr ? "without" : "with"));
    }
    if (scales != nullptr) {
      format.group_rows = GroupRows(*scales, spec, model);
      found.files.scales = scales;
    }
    if (expert > 0 && !(format == found.format)) {
      BadData(fmt::format("{}: {} is stored as {}, unlike the experts before it", FileOf(*tensor),
                          name, NameOf(tensor->dtype)));
    }
    found.format = format;
    found.files.tensors.push_back(tensor);
  }
  return found;
}

/// The naming under which the checkpoint has the most of the weights outside layers and of layer 0:
/// namings share some names, and a weight that is missing shall be reported under its own.
const Naming& NamingOf(const Checkpoint& checkpoint, const Family& family,
                       const ModelDescription& model) {
  const std::vector<WeightSpec> weights = ListWeights(model);
  const Naming* best = nullptr;
  std::int64_t most = 0;
  for (const Naming& naming : family.namings) {
    if (naming.format != checkpoint.format()) continue;
    const std::int64_t found =
        std::count_if(weights.begin(), weights.end(), [&](const WeightSpec& spec) {
          return spec.layer <= 0 && checkpoint.Find(naming.name_of(model, spec, 0)) != nullptr;
        });
    if (found > most) {
      best = &naming;
      most = found;
    }
  }
  if (best == nullptr) {
    BadData(fmt::format("{}: no weight under any name known for {}",
                        checkpoint.directory().string(), family.name));
  }
  return *best;
}

WeightFormat SyntheticFormat(const WeightSpec& spec, WeightType weights) {
  if (spec.n == 0 || spec.role == WeightRole::kRouter) return {WeightType::kF32, 0};
  if (!HasScales(weights)) return {weights, 0};
  if (spec.role == WeightRole::kEmbedding || spec.role == WeightRole::kOutput) {
    return {WeightType::kInt8, spec.k};  // of int4 no row could be looked up
  }
  return weights == WeightType::kInt4 ? WeightFormat{WeightType::kInt4, kInt4GroupRows}
                                      : kGrok1.published_format(spec);
}

/// Holds one weight of a pack against its spec.
void CheckPacked(const PackedWeight& packed, const WeightSpec& spec, const ModelDescription& model,
                 const std::string& file) {
  const std::int64_t experts = spec.expert_stack ? model.experts : 1;
  if (packed.k != spec.k || packed.n != spec.n || packed.experts != experts) {
    BadData(fmt::format(
        "{}: {} has {} × [{}, {}], expected {} × [{}, {}]: it is a pack of another "
        "model than config.json's",
        file, packed.name, packed.experts, packed.k, packed.n, experts, spec.k, spec.n));
  }
  if ((spec.n == 0 && packed.type != WeightType::kF32) ||
      (spec.role == WeightRole::kEmbedding && packed.type == WeightType::kInt4)) {
    BadData(
        fmt::format("{}: {} is {}, which is not served", file, packed.name, NameOf(packed.type)));
  }
  auto data = static_cast<std::uint64_t>(spec.k * SizeOf(DType::kF32));
  std::uint64_t scales = 0;
  if (spec.n > 0) {
    const MatrixLayout layout = WholeLayoutOf(spec, {packed.type, packed.group_rows}, model);
    data = static_cast<std::uint64_t>(layout.WeightBytes());
    scales = static_cast<std::uint64_t>(layout.ScaleBytes());
  }
  if (packed.data.bytes != data || packed.scales.bytes != scales) {
    BadData(fmt::format("{}: {} has {} bytes and {} of scales, expected {} and {}", file,
                        packed.name, packed.data.bytes, packed.scales.bytes, data, scales));
  }
}

/// Buffers that some conversions store although they follow from the config.
bool Ignorable(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

}  // namespace

UnpackedMatrix WeightFiles::Matrix(const WeightSpec& spec, const WeightFormat& format,
                                   std::int64_t expert) const {
  UnpackedMatrix matrix{.output_major = output_major};
  const bool stacked = spec.expert_stack && tensors.size() == 1;
  const StoredTensor& tensor = *tensors[stacked ? 0 : static_cast<std::size_t>(expert)];
  matrix.data = tensor.bytes().data();
  if (stacked) matrix.data += expert * spec.k * spec.n * SizeOf(tensor.dtype);
  if (scales != nullptr) {
    const std::int64_t groups = spec.k / format.group_rows;
    matrix.scales = scales->bytes().data() + expert * groups * spec.n * SizeOf(DType::kBf16);
  }
  return matrix;
}

ModelSource ModelSource::Open(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    throw UserError(ExitStatus::kNoInput, fmt::format("no model directory {}", directory.string()));
  }
  ModelSource source;
  source.name_ = fs::weakly_canonical(directory, error).filename().string();
  const Family* family = &kGrok1;
  std::string description_file = "Grok-1's published constants";
  if (const fs::path config_file = directory / "config.json"; fs::exists(config_file, error)) {
    const Config config = Config::FromFile(config_file);
    family = &FamilyOf(config);
    source.model_ = family->describe(config);
    description_file = config_file.string();
  } else {
    source.model_ = Grok1Published();
  }
  CheckDescription(source.model_, description_file, ExitStatus::kBadData);
  if (const fs::path tokenizer = directory / "tokenizer.model"; fs::exists(tokenizer, error)) {
    source.tokenizer_ = tokenizer;
  }

  if (const fs::path pack = directory / kPackFileName; fs::exists(pack, error)) {
    source.TakePack(pack);
  } else {
    source.TakeCheckpoint(directory, *family);
  }
  source.CheckFusedFormats();
  return source;
}

void ModelSource::TakeCheckpoint(const fs::path& directory, const Family& family) {
  checkpoint_ = Checkpoint::Open(directory);
  const Naming& naming = NamingOf(*checkpoint_, family, model_);
  naming_ = naming.label;
  // A tied model's files may hold the output matrix all the same; then it counts.
  const std::string output = naming.name_of(model_, WeightSpec{.role = WeightRole::kOutput}, 0);
  const std::string embedding =
      naming.name_of(model_, WeightSpec{.role = WeightRole::kEmbedding}, 0);
  if (output != embedding && checkpoint_->Find(output) != nullptr) model_.tied_output = false;

  weights_ = ListWeights(model_);
  std::set<const StoredTensor*> used;
  for (const WeightSpec& spec : weights_) {
    Found found = FindWeight(*checkpoint_, naming, spec, model_);
    used.insert(found.files.tensors.begin(), found.files.tensors.end());
    used.insert(found.files.scales);
    formats_.push_back(found.format);
    files_.push_back(std::move(found.files));
  }
  for (const StoredTensor& tensor : checkpoint_->tensors()) {
    if (!used.contains(&tensor) && !Ignorable(tensor.name)) {
      BadData(fmt::format("{}: {} is no weight of this {} model of {} layers", FileOf(tensor),
                          tensor.name, model_.family, model_.layers));
    }
  }
}

void ModelSource::TakePack(const fs::path& file) {
  pack_ = Pack::Open(file);
  naming_ = "jubal pack";
  const std::vector<PackedWeight>& packed = pack_->weights;
  // A pack has the output matrix of a tied model if its checkpoint had.
  const std::string output = WeightSpec{.role = WeightRole::kOutput}.Name();
  if (!packed.empty() && packed.back().name == output) model_.tied_output = false;
  weights_ = ListWeights(model_);
  for (std::size_t i = 0; i < std::max(weights_.size(), packed.size()); ++i) {
    if (i < weights_.size() && i < packed.size() && packed[i].name == weights_[i].Name()) {
      CheckPacked(packed[i], weights_[i], model_, file.string());
      formats_.push_back({packed[i].type, packed[i].group_rows});
      continue;
    }
    BadData(fmt::format(
        "{}: weight number {} is {}, expected {}: it is a pack of another model than config.json's",
        file.string(), i, i < packed.size() ? Quoted(packed[i].name) : "missing",
        i < weights_.size() ? weights_[i].Name() : "no more"));
  }
}

std::string ModelSource::StoredName(std::size_t i) const {
  return packed() ? weights_[i].Name()
                  : fmt::format("{} ({})", files_[i].tensors.front()->name, weights_[i].Name());
}

// Kernels multiply query, key and value in one go, and an expert's gate and up.
void ModelSource::CheckFusedFormats() const {
  using enum WeightRole;
  const auto text = [](const WeightFormat& format) {
    return HasScales(format.type)
               ? fmt::format("{} with groups of {} rows", NameOf(format.type), format.group_rows)
               : std::string(NameOf(format.type));
  };
  std::size_t first = 0;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const WeightRole role = weights_[i].role;
    if (role == kQuery || role == kExpertGate) first = i;
    if (role != kKey && role != kValue && role != kExpertUp) continue;
    if (formats_[i] == formats_[first]) continue;
    BadData(fmt::format("{}: {} is {}, but {} is {}: they must be stored alike",
                        packed() ? pack_->file->path().string() : checkpoint_->directory().string(),
                        StoredName(first), text(formats_[first]), StoredName(i),
                        text(formats_[i])));
  }
}

std::optional<ModelSource> ModelSource::Published(std::string_view name) {
  if (name != kGrok1.name) return std::nullopt;
  ModelSource source;
  source.name_ = kGrok1.name;
  source.naming_ = kGrok1.namings.front().label;
  source.model_ = Grok1Published();
  source.weights_ = ListWeights(source.model_);
  for (const WeightSpec& spec : source.weights_) {
    source.formats_.push_back(kGrok1.published_format(spec));
  }
  return source;
}

ModelSource ModelSource::Synthetic(const SyntheticShape& shape, WeightType weights) {
  ModelSource source;
  source.name_ = "synthetic";
  source.naming_ = "none";
  source.model_ = Grok1Published();
  ModelDescription& m = source.model_;
  m.layers = shape.layers;
  m.hidden = shape.hidden;
  m.heads = shape.heads;
  m.kv_heads = shape.kv_heads;
  m.head_dim = shape.head_dim;
  m.experts = shape.experts;
  m.top_k = shape.top_k;
  m.expert_hidden = shape.expert_hidden;
  m.vocabulary = shape.vocabulary;
  m.embedding_multiplier = static_cast<float>(std::sqrt(static_cast<double>(m.hidden)));
  m.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(m.head_dim)));
  m.eos_ids.clear();
  CheckDescription(m, "the synthetic model", ExitStatus::kUsage);
  for (const auto& [what, width] :
       {std::pair{"attention width", m.heads * m.head_dim}, {"expert width", m.expert_hidden}}) {
    if (width % kChunks != 0) {
      throw UserError(ExitStatus::kUsage, fmt::format("the synthetic model: {} {} is no multiple "
                                                      "of {}, the groups of its scales",
                                                      what, width, kChunks));
    }
  }
  source.weights_ = ListWeights(m);
  for (const WeightSpec& spec : source.weights_) {
    source.formats_.push_back(SyntheticFormat(spec, weights));
  }
  return source;
}

std::int64_t ModelSource::stored_bytes() const {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (packed()) {
      bytes +=
          static_cast<std::int64_t>(pack_->weights[i].data.bytes + pack_->weights[i].scales.bytes);
      continue;
    }
    const WeightSpec& spec = weights_[i];
    const std::int64_t copies = spec.expert_stack ? model_.experts : 1;
    bytes +=
        copies * spec.k * std::max<std::int64_t>(spec.n, 1) * 4 / RowsPerStep(formats_[i].type);
    if (formats_[i].group_rows > 0) bytes += copies * spec.k / formats_[i].group_rows * spec.n * 2;
  }
  return bytes;
}

}  // namespace jubal

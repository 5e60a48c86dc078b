#include "runtime/models/config.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "kernels/error.h"

namespace jubal {
namespace {

constexpr std::uintmax_t kMaxConfigBytes = 16 << 20;
constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();

}  // namespace

Config Config::FromFile(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) {
    throw UserError(ExitStatus::kNoInput, fmt::format("cannot read {}", path.string()));
  }
  if (bytes > kMaxConfigBytes) {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{} has {} bytes: not a model's config", path.string(), bytes));
  }
  nlohmann::json json = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw UserError(ExitStatus::kBadData, fmt::format("{} is not a JSON object", path.string()));
  }
  return Config(path.string(), std::move(json));
}

const nlohmann::json* Config::Find(std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys) {
    const auto found = json_.find(key);
    if (found != json_.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

void Config::Fail(std::string_view key, std::string_view problem) const {
  throw UserError(ExitStatus::kBadData, fmt::format("{}: \"{}\" {}", file_, key, problem));
}

bool Config::Has(std::initializer_list<std::string_view> keys) const {
  return Find(keys) != nullptr;
}

std::int64_t Config::Size(std::initializer_list<std::string_view> keys) const {
  const nlohmann::json* value = Find(keys);
  if (value == nullptr) Fail(*keys.begin(), "is missing");
  if (!value->is_number_integer()) Fail(*keys.begin(), "is not a whole number");
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > std::uint64_t{kMaxSize}) {
    Fail(*keys.begin(), fmt::format("is {}, above {}", value->get<std::uint64_t>(), kMaxSize));
  }
  const auto size = value->get<std::int64_t>();
  if (size < 1) Fail(*keys.begin(), fmt::format("is {}, below 1", size));
  return size;
}

std::int64_t Config::Size(std::initializer_list<std::string_view> keys, std::int64_t absent) const {
  return Has(keys) ? Size(keys) : absent;
}

double Config::Number(std::initializer_list<std::string_view> keys) const {
  const nlohmann::json* value = Find(keys);
  if (value == nullptr) Fail(*keys.begin(), "is missing");
  if (!value->is_number()) Fail(*keys.begin(), "is not a number");
  const double number = value->get<double>();
  if (!std::isfinite(number) || std::abs(number) > 1e30) Fail(*keys.begin(), "is out of range");
  return number;
}

double Config::Number(std::initializer_list<std::string_view> keys, double absent) const {
  return Has(keys) ? Number(keys) : absent;
}

bool Config::Flag(std::string_view key, bool absent) const {
  const nlohmann::json* value = Find({key});
  if (value == nullptr) return absent;
  if (!value->is_boolean()) Fail(key, "is neither true nor false");
  return value->get<bool>();
}

std::string Config::Text(std::string_view key, std::string_view absent) const {
  const nlohmann::json* value = Find({key});
  if (value == nullptr) return std::string(absent);
  if (!value->is_string()) Fail(key, "is not a string");
  return value->get<std::string>();
}

std::vector<TokenId> Config::Ids(std::string_view key) const {
  const nlohmann::json* value = Find({key});
  if (value == nullptr) return {};
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > 64) Fail(key, "lists more than 64 ids");
  std::vector<TokenId> ids;
  for (const nlohmann::json& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() > kMaxSize) {
      Fail(key, "is no token id");
    }
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

std::vector<std::string> Config::ModelTypes() const {
  std::vector<std::string> types;
  if (Has({"model_type"})) types.push_back(Text("model_type", ""));
  if (const nlohmann::json* list = Find({"architectures"}); list != nullptr && list->is_array()) {
    for (const nlohmann::json& name : *list) {
      if (name.is_string()) types.push_back(name.get<std::string>());
    }
  }
  return types;
}

double Config::RopeTheta(double absent) const {
  Refuse("rope_scaling");
  double theta = Number({"rope_theta"}, absent);
  if (const nlohmann::json* rope = Find({"rope_parameters"})) {
    if (!rope->is_object()) Fail("rope_parameters", "is not an object");
    const Config inner(file_, *rope);
    const std::string type = inner.Text("rope_type", "default");
    if (type != "default") Fail("rope_type", fmt::format("is {}, which is not served", type));
    theta = inner.Number({"rope_theta"}, theta);
  }
  if (theta <= 1.0) Fail("rope_theta", fmt::format("is {}, not above 1", theta));
  return theta;
}

void Config::Refuse(std::string_view key) const {
  const nlohmann::json* value = Find({key});
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return;
  Fail(key, "asks for something that is not served for this family");
}

}  // namespace jubal

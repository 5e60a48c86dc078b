#ifndef JUBAL_RUNTIME_MODELS_CONFIG_H_
#define JUBAL_RUNTIME_MODELS_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "runtime/token.h"

namespace jubal {

/// A config.json, read with suspicion: every value is bounded, and an error names file and key.
/// All getters throw UserError (kBadData). Where several keys are given, they are synonyms and the
/// first that is present and not null counts.
class Config {
 public:
  /// Throws UserError: kNoInput when unreadable, kBadData when it is not a JSON object.
  static Config FromFile(const std::filesystem::path& path);

  const std::string& file() const { return file_; }

  bool Has(std::initializer_list<std::string_view> keys) const;
  /// 1 ≤ value ≤ 2³¹ − 1.
  std::int64_t Size(std::initializer_list<std::string_view> keys) const;
  std::int64_t Size(std::initializer_list<std::string_view> keys, std::int64_t absent) const;
  /// Finite.
  double Number(std::initializer_list<std::string_view> keys) const;
  double Number(std::initializer_list<std::string_view> keys, double absent) const;
  bool Flag(std::string_view key, bool absent) const;
  std::string Text(std::string_view key, std::string_view absent) const;
  /// One id or a list of them; empty when absent.
  std::vector<TokenId> Ids(std::string_view key) const;
  /// model_type and the architectures.
  std::vector<std::string> ModelTypes() const;
  /// rope_theta, at top level or in rope_parameters; refuses every scaled form of rope.
  double RopeTheta(double absent) const;
  /// Refuses a key that changes the mathematics in a way this program does not know, unless it is
  /// absent, null or false.
  void Refuse(std::string_view key) const;

 private:
  Config(std::string file, nlohmann::json json) : file_(std::move(file)), json_(std::move(json)) {}
  const nlohmann::json* Find(std::initializer_list<std::string_view> keys) const;
  [[noreturn]] void Fail(std::string_view key, std::string_view problem) const;

  std::string file_;
  nlohmann::json json_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_MODELS_CONFIG_H_

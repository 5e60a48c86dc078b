#ifndef JUBAL_TESTS_RUNTIME_TOKENIZER_ORACLE_H_
#define JUBAL_TESTS_RUNTIME_TOKENIZER_ORACLE_H_

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

inline Tokenizer DemoTokenizer() {
  return Tokenizer::FromFile(std::filesystem::path(JUBAL_DEMO_MODEL) / "tokenizer.model");
}

/// What the sentencepiece library makes of the demo tokenizer: see make_oracle.py.
inline nlohmann::json DemoOracle() {
  std::ifstream file(std::filesystem::path(JUBAL_TEST_DATA) / "tokenizer" / "demo_oracle.json");
  return nlohmann::json::parse(file);
}

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_TOKENIZER_ORACLE_H_

#ifndef JUBAL_TESTS_RUNTIME_GOLDEN_H_
#define JUBAL_TESTS_RUNTIME_GOLDEN_H_

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/token.h"

namespace jubal {

/// A tensor of a reference file, f32 or i32, widened to double (exact for both).
struct ReferenceTensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;

  std::vector<TokenId> Tokens() const;
};

std::map<std::string, ReferenceTensor> ReadReference(const std::filesystem::path& file);

/// tests/data/golden
std::filesystem::path GoldenDirectory();

/// The trained model of the quick start.
std::filesystem::path DemoModel();

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_GOLDEN_H_

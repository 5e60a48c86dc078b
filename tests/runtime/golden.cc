#include "tests/runtime/golden.h"

#include <cstring>
#include <memory>

#include "kernels/check.h"
#include "runtime/checkpoint/safetensors.h"

namespace jubal {

std::vector<TokenId> ReferenceTensor::Tokens() const {
  std::vector<TokenId> tokens;
  for (const double value : values) tokens.push_back(static_cast<TokenId>(value));
  return tokens;
}

std::map<std::string, ReferenceTensor> ReadReference(const std::filesystem::path& file) {
  std::map<std::string, ReferenceTensor> tensors;
  for (const StoredTensor& stored : ReadSafetensors(std::make_shared<const MappedFile>(file))) {
    ReferenceTensor tensor{.shape = stored.shape, .values = {}};
    const auto bytes = stored.bytes();
    for (std::size_t i = 0; i < bytes.size() / 4; ++i) {
      if (stored.dtype == DType::kF32) {
        float value = 0;
        std::memcpy(&value, bytes.data() + 4 * i, 4);
        tensor.values.push_back(static_cast<double>(value));
      } else {
        CHECK(stored.dtype == DType::kI32);
        std::int32_t value = 0;
        std::memcpy(&value, bytes.data() + 4 * i, 4);
        tensor.values.push_back(static_cast<double>(value));
      }
    }
    tensors.emplace(stored.name, std::move(tensor));
  }
  return tensors;
}

std::filesystem::path GoldenDirectory() {
  return std::filesystem::path(JUBAL_TEST_DATA) / "golden";
}

std::filesystem::path DemoModel() { return JUBAL_DEMO_MODEL; }

}  // namespace jubal

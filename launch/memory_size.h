#ifndef JUBAL_LAUNCH_MEMORY_SIZE_H_
#define JUBAL_LAUNCH_MEMORY_SIZE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace jubal {

/// Bytes of a size as people write it: "80GB" (10^9), "4GiB" (2^30), "1.5TB", "512" (bytes).
/// Nothing for any other text and for more than 2^63 - 1 bytes.
std::optional<std::int64_t> ParseMemorySize(std::string_view text);

/// "158.1 GB", for people. `bytes` >= 0.
std::string MemorySizeText(std::int64_t bytes);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_MEMORY_SIZE_H_

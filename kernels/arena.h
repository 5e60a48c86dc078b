#ifndef JUBAL_KERNELS_ARENA_H_
#define JUBAL_KERNELS_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/gpu.h"
#include "kernels/tensor.h"

namespace jubal {

/// Every tensor starts at a multiple of this: one cache line.
inline constexpr std::int64_t kAlignment = 64;

/// Bytes of a tensor in an arena, its padding included.
inline std::int64_t ArenaBytes(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Memory taken once, at start-up, and handed out piece by piece; given back as a whole. Zeroed.
/// Moving it keeps the pieces valid.
class Arena {
 public:
  Arena() = default;
  /// Throws UserError (kConfig) when the machine does not give that much.
  explicit Arena(std::int64_t bytes);
  /// Of memory that somebody has taken: `bytes` of it, zeroed, at a multiple of kAlignment.
  Arena(std::shared_ptr<std::byte> memory, std::int64_t bytes, Device device = Device::kCpu);
  /// Of a GPU's memory. Throws UserError (kConfig) when it does not give that much.
  Arena(Gpu& gpu, std::int64_t bytes);
  Arena(Arena&&) = default;
  Arena& operator=(Arena&&) = default;

  /// The next piece. Taking more than the arena has is a bug: its size came from a plan.
  TensorView Take(DType dtype, Shape shape);

  std::int64_t bytes_left() const { return bytes_ - used_; }
  /// All of it, as bytes.
  ConstTensorView memory() const { return {memory_.get(), DType::kU8, Shape{bytes_}, device_}; }

 private:
  std::shared_ptr<std::byte> memory_;
  std::int64_t bytes_ = 0;
  std::int64_t used_ = 0;
  Device device_ = Device::kCpu;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_ARENA_H_

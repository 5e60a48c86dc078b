#include "kernels/arena.h"

#include <sys/mman.h>

#include <utility>

#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/error.h"

namespace jubal {

Arena::Arena(std::int64_t bytes) : bytes_(ArenaBytes(bytes)) {
  if (bytes_ == 0) return;
  void* data = mmap(nullptr, static_cast<std::size_t>(bytes_), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    throw UserError(ExitStatus::kConfig,
                    fmt::format("this machine does not give {} bytes of memory", bytes_));
  }
  // Weights are read from end to end: fewer, larger pages save address translation.
  madvise(data, static_cast<std::size_t>(bytes_), MADV_HUGEPAGE);
  const std::int64_t taken = bytes_;
  memory_ = std::shared_ptr<std::byte>(static_cast<std::byte*>(data), [taken](std::byte* memory) {
    munmap(memory, static_cast<std::size_t>(taken));
  });
}

Arena::Arena(std::shared_ptr<std::byte> memory, std::int64_t bytes, Device device)
    : memory_(std::move(memory)), bytes_(bytes), device_(device) {}

Arena::Arena(Gpu& gpu, std::int64_t bytes) : bytes_(ArenaBytes(bytes)), device_(Device::kCuda) {
  if (bytes_ > 0) memory_ = gpu.Allocate(bytes_);
}

TensorView Arena::Take(DType dtype, Shape shape) {
  const std::int64_t bytes = ArenaBytes(shape.elements() * SizeOf(dtype));
  CHECK_LE(bytes, bytes_left());
  TensorView view(memory_.get() + used_, dtype, shape, device_);
  used_ += bytes;
  return view;
}

}  // namespace jubal

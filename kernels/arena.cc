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
  data_ = static_cast<std::byte*>(data);
}

Arena::~Arena() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      used_(std::exchange(other.used_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(used_, other.used_);
  return *this;
}

TensorView Arena::Take(DType dtype, Shape shape) {
  const std::int64_t bytes = ArenaBytes(shape.elements() * SizeOf(dtype));
  CHECK_LE(bytes, bytes_left());
  TensorView view(data_ + used_, dtype, shape);
  used_ += bytes;
  return view;
}

}  // namespace jubal

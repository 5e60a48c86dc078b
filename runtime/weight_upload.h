#ifndef JUBAL_RUNTIME_WEIGHT_UPLOAD_H_
#define JUBAL_RUNTIME_WEIGHT_UPLOAD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

/// What travels to a GPU at a time, at most where it can be cut.
inline constexpr std::int64_t kUploadBytes = std::int64_t{64} << 20;

/// Brings bytes to a GPU through two pieces of pinned memory: while one travels, the host fills the
/// other. What is sent is used on the GPU in any order.
class WeightUpload {
 public:
  using Fill = std::function<void(std::byte* to)>;
  /// Enqueues what uses the slab, which holds what has been sent until that is done.
  using Use = std::function<void(const std::byte* slab, Stream& stream)>;

  /// For pieces of at most `bytes`; Use needs as large `slabs` on the GPU. `gpu` must outlive this.
  WeightUpload(Gpu& gpu, std::int64_t bytes, bool slabs);

  /// to ← what `fill` writes. to: dense, on the GPU.
  void Send(TensorView to, const Fill& fill);
  void Send(std::int64_t bytes, const Fill& fill, const Use& use);
  /// Waits until all has been used.
  void Finish();

 private:
  struct Lane {
    std::shared_ptr<std::byte> pinned;
    std::shared_ptr<std::byte> slab;
    std::unique_ptr<Stream> stream;  // when it is done, the memory is free again
  };

  Lane& FilledLane(std::int64_t bytes, const Fill& fill);

  const std::int64_t bytes_;
  std::array<Lane, 2> lanes_;
  std::size_t next_ = 0;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_WEIGHT_UPLOAD_H_

#ifndef JUBAL_KERNELS_GPU_H_
#define JUBAL_KERNELS_GPU_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace jubal {

/// The GPU or its driver failed. The rank can only end the job.
class GpuError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct GpuInfo {
  std::string name;            // "NVIDIA H200"
  std::string uuid;            // of the card, whatever the process calls it: "GPU-8f6e…"
  int compute_capability = 0;  // 90 is 9.0
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t free_bytes = 0;   // now
  std::int64_t cache_bytes = 0;  // L2
};

/// Work that was recorded once and can be launched any number of times, on the same addresses.
class GpuGraph {
 public:
  virtual ~GpuGraph() = default;
};

/// What a Stream on a GPU enqueues to. Everything but Synchronize and Done returns at once; work
/// runs in the order in which it was enqueued. A failure throws GpuError, perhaps in a later call.
class GpuQueue {
 public:
  virtual ~GpuQueue() = default;

  /// Copies `rows` times `row_bytes`; rows lie `to_pitch` and `from_pitch` bytes apart. Either side
  /// may be on the host. Host memory that is not pinned has been read when the call returns, but
  /// written only when the queue is done.
  virtual void Copy(std::byte* to, std::int64_t to_pitch, const std::byte* from,
                    std::int64_t from_pitch, std::int64_t row_bytes, std::int64_t rows) = 0;
  virtual void Fill(std::byte* to, std::uint8_t value, std::int64_t bytes) = 0;

  /// Later work here waits for what has been enqueued there.
  virtual void WaitFor(GpuQueue& other) = 0;

  /// True when all is done. Does not wait.
  virtual bool Done() = 0;
  /// Waits until all is done.
  virtual void Synchronize() = 0;

  /// Between these, work is recorded and not run. What is recorded must not synchronise, nor touch
  /// host memory that is not pinned.
  virtual void BeginCapture() = 0;
  virtual std::unique_ptr<GpuGraph> EndCapture() = 0;
  /// Enqueues what the graph holds, which was recorded on this GPU.
  virtual void Launch(const GpuGraph& graph) = 0;

  /// A mark in the queue, and the seconds between two that have been passed.
  class Mark {
   public:
    virtual ~Mark() = default;
  };
  virtual std::unique_ptr<Mark> NewMark() = 0;
  virtual double SecondsBetween(const Mark& from, const Mark& to) = 0;

  /// The backend's own handle: a cudaStream_t.
  virtual void* handle() = 0;
};

/// One GPU of this host: an NVIDIA one (kernels/cuda/cuda_gpu.h), or in tests one that is emulated
/// on the CPU. Opening it has given every operation its GPU form. Thread-safe.
class Gpu {
 public:
  virtual ~Gpu() = default;

  virtual GpuInfo info() const = 0;
  /// Memory of the GPU, zeroed. Throws UserError (kConfig) when it has not that much.
  virtual std::shared_ptr<std::byte> Allocate(std::int64_t bytes) = 0;
  /// Host memory that the GPU copies from and to without the CPU's help.
  virtual std::shared_ptr<std::byte> AllocatePinned(std::int64_t bytes) = 0;
  virtual std::unique_ptr<GpuQueue> NewQueue() = 0;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_GPU_H_

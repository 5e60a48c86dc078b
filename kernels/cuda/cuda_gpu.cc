#include "kernels/cuda/cuda_gpu.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "kernels/check.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/forms.h"
#include "kernels/error.h"

namespace jubal {
namespace {

class CudaGraph : public GpuGraph {
 public:
  explicit CudaGraph(cudaGraph_t recorded) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, recorded, 0);
    cudaGraphDestroy(recorded);
    CheckCuda(status, "making a graph executable");
  }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class CudaMark : public GpuQueue::Mark {
 public:
  explicit CudaMark(cudaStream_t stream) {
    CheckCuda(cudaEventCreate(&event_), "making an event");
    CheckCuda(cudaEventRecord(event_, stream), "recording an event");
  }
  ~CudaMark() override { cudaEventDestroy(event_); }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;

  cudaEvent_t event() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaQueue : public GpuQueue {
 public:
  CudaQueue() {
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event");
  }
  ~CudaQueue() override {
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
  }
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  void Copy(std::byte* to, std::int64_t to_pitch, const std::byte* from, std::int64_t from_pitch,
            std::int64_t row_bytes, std::int64_t rows) override {
    const auto width = static_cast<std::size_t>(row_bytes);
    const auto height = static_cast<std::size_t>(rows);
    if (rows == 1 || (to_pitch == row_bytes && from_pitch == row_bytes)) {
      CheckCuda(cudaMemcpyAsync(to, from, width * height, cudaMemcpyDefault, stream_), "copying");
      return;
    }
    CheckCuda(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_pitch), from,
                                static_cast<std::size_t>(from_pitch), width, height,
                                cudaMemcpyDefault, stream_),
              "copying");
  }

  void Fill(std::byte* to, std::uint8_t value, std::int64_t bytes) override {
    CheckCuda(cudaMemsetAsync(to, value, static_cast<std::size_t>(bytes), stream_), "filling");
  }

  void WaitFor(GpuQueue& other) override {
    CheckCuda(cudaEventRecord(event_, static_cast<cudaStream_t>(other.handle())),
              "recording an event");
    CheckCuda(cudaStreamWaitEvent(stream_, event_, 0), "waiting for another stream");
  }

  bool Done() override {
    const cudaError_t status = cudaStreamQuery(stream_);
    if (status == cudaErrorNotReady) return false;
    CheckCuda(status, "the GPU's work");
    return true;
  }

  void Synchronize() override { CheckCuda(cudaStreamSynchronize(stream_), "the GPU's work"); }

  void BeginCapture() override {
    CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
              "recording a graph");
  }

  std::unique_ptr<GpuGraph> EndCapture() override {
    cudaGraph_t recorded = nullptr;
    CheckCuda(cudaStreamEndCapture(stream_, &recorded), "recording a graph");
    return std::make_unique<CudaGraph>(recorded);
  }

  void Launch(const GpuGraph& graph) override {
    CheckCuda(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).executable(), stream_),
              "launching a graph");
  }

  std::unique_ptr<Mark> NewMark() override { return std::make_unique<CudaMark>(stream_); }

  double SecondsBetween(const Mark& from, const Mark& to) override {
    float milliseconds = 0.0f;
    CheckCuda(cudaEventElapsedTime(&milliseconds, static_cast<const CudaMark&>(from).event(),
                                   static_cast<const CudaMark&>(to).event()),
              "reading a time");
    return static_cast<double>(milliseconds) * 1e-3;
  }

  void* handle() override { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr;  // where others are waited for
};

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

class CudaGpu : public Gpu {
 public:
  explicit CudaGpu(int index) : index_(index) { MakeCurrent(); }

  GpuInfo info() const override {
    MakeCurrent();
    cudaDeviceProp properties{};
    CheckCuda(cudaGetDeviceProperties(&properties, index_), "asking for the GPU's properties");
    std::size_t free = 0;
    std::size_t total = 0;
    CheckCuda(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
    return {.name = properties.name,
            .uuid = UuidText(properties.uuid),
            .compute_capability = properties.major * 10 + properties.minor,
            .multiprocessors = properties.multiProcessorCount,
            .memory_bytes = static_cast<std::int64_t>(total),
            .free_bytes = static_cast<std::int64_t>(free),
            .cache_bytes = properties.l2CacheSize};
  }

  std::shared_ptr<std::byte> Allocate(std::int64_t bytes) override {
    MakeCurrent();
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it would be reported once more
      throw UserError(ExitStatus::kConfig,
                      fmt::format("{} does not give {} bytes of memory: {} are free", info().name,
                                  bytes, info().free_bytes));
    }
    CheckCuda(status, "taking memory");
    std::shared_ptr<std::byte> owned(static_cast<std::byte*>(memory),
                                     [](std::byte* taken) { cudaFree(taken); });
    CheckCuda(cudaMemset(memory, 0, static_cast<std::size_t>(bytes)), "zeroing memory");
    CheckCuda(cudaDeviceSynchronize(), "zeroing memory");
    return owned;
  }

  std::shared_ptr<std::byte> AllocatePinned(std::int64_t bytes) override {
    MakeCurrent();
    void* memory = nullptr;
    CheckCuda(cudaMallocHost(&memory, static_cast<std::size_t>(bytes)), "taking pinned memory");
    return {static_cast<std::byte*>(memory), [](std::byte* taken) { cudaFreeHost(taken); }};
  }

  std::unique_ptr<GpuQueue> NewQueue() override {
    MakeCurrent();
    return std::make_unique<CudaQueue>();
  }

 private:
  void MakeCurrent() const { CheckCuda(cudaSetDevice(index_), "choosing a GPU"); }

  const int index_;
};

}  // namespace

std::vector<std::string> CudaGpuUuids() {
  std::vector<std::string> uuids;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return uuids;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    CheckCuda(cudaGetDeviceProperties(&properties, i), "asking for the GPU's properties");
    uuids.push_back(UuidText(properties.uuid));
  }
  return uuids;
}

std::unique_ptr<Gpu> OpenCudaGpu(int index) {
  InstallGpuForms();
  return std::make_unique<CudaGpu>(index);
}

}  // namespace jubal

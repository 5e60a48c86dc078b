#ifndef JUBAL_TESTS_KERNELS_CUDA_GPU_TEST_H_
#define JUBAL_TESTS_KERNELS_CUDA_GPU_TEST_H_

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/copy.h"
#include "kernels/gpu.h"
#include "kernels/run.h"
#include "kernels/stream.h"
#include "tests/kernels/host_tensor.h"

namespace jubal {

/// The GPUs that this program's tests run on: an emulated one in both orders of threads
/// (emulated_gpus.cc), or the first real one (cuda_gpus.cc).
std::vector<std::string> TestGpus();
Gpu& OpenTestGpu(const std::string& name);

/// A test of an operation's GPU form.
///
///   TEST_P(RmsNormGpuTest, …) { … Launch(RmsNorm{.out = out, .x = OnGpu(x), …}); … }
///   INSTANTIATE_GPU_TEST(RmsNormGpuTest);
class GpuTest : public testing::TestWithParam<std::string> {
 protected:
  Gpu& gpu() { return gpu_; }
  Stream& stream() { return stream_; }

  /// Enqueues the operation.
  template <class Op>
  void Launch(const Op& op) {
    jubal::Run(op, stream_);
  }
  /// A copy of the tensor on the GPU, which lives as long as the test. Beyond it lie bytes 0xff.
  template <class T>
  TensorView OnGpu(const HostTensor<T>& host) {
    const TensorView view = Allocate(host.view().dtype(), host.view().shape());
    Launch(Copy{.out = view, .x = host.view()});
    return view;
  }
  /// Memory on the GPU whose bytes are all 0xff: NaN.
  TensorView Allocate(DType dtype, Shape shape) {
    const std::int64_t bytes = shape.elements() * SizeOf(dtype);
    memory_.push_back(gpu_.Allocate(bytes + 256));
    stream_.queue().Fill(memory_.back().get(), 0xff, bytes + 256);
    return {memory_.back().get(), dtype, shape, Device::kCuda};
  }
  /// Waits for the stream, then copies the elements back.
  template <class T>
  std::vector<T> ReadBack(ConstTensorView view) {
    HostTensor<T> host(view.shape());
    Launch(Copy{.out = host.view(), .x = view});
    stream_.Synchronize();
    return host.values();
  }

 private:
  Gpu& gpu_ = OpenTestGpu(GetParam());
  std::vector<std::shared_ptr<std::byte>> memory_;
  Stream stream_{gpu_};
};

#define INSTANTIATE_GPU_TEST(suite)                                  \
  INSTANTIATE_TEST_SUITE_P(On, suite, testing::ValuesIn(TestGpus()), \
                           [](const auto& test) { return test.param; })

}  // namespace jubal

#endif  // JUBAL_TESTS_KERNELS_CUDA_GPU_TEST_H_

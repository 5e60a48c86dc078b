#ifndef JUBAL_TESTS_PARALLEL_DEVICE_WORLD_H_
#define JUBAL_TESTS_PARALLEL_DEVICE_WORLD_H_

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/arena.h"
#include "kernels/copy.h"
#include "kernels/gpu.h"
#include "kernels/run.h"
#include "kernels/stream.h"
#include "parallel/host_staged_communicator.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"
#include "tests/parallel/local_world.h"

namespace jubal {

using RankMain = std::function<void(std::unique_ptr<Communicator>, Stream& stream)>;

/// One of those below, as a test's parameter: plays rank_main on every rank of a world, each with a
/// stream of its own device.
using RunDeviceWorld = void (*)(int size, const RankMain& rank_main);

inline void RunLocalCpus(int size, const RankMain& rank_main) {
  RunLocalWorld(size, [&](std::unique_ptr<Communicator> world) {
    Stream stream;
    rank_main(std::move(world), stream);
  });
}

inline void RunSharedMemoryCpus(int size, const RankMain& rank_main) {
  RunSharedMemoryWorld(size, [&](std::unique_ptr<Communicator> world) {
    Stream stream;
    rank_main(std::move(world), stream);
  });
}

/// Each rank with an emulated GPU, and the world that `over` makes of it and a local one.
template <class Over>
void RunEmulatedGpus(int size, const RankMain& rank_main, const Over& over) {
  std::vector<std::unique_ptr<Gpu>> gpus;
  for (int r = 0; r < size; ++r) gpus.push_back(OpenEmulatedGpu());
  RunLocalWorld(size, [&](std::unique_ptr<Communicator> world) {
    Gpu& gpu = *gpus[static_cast<std::size_t>(world->rank())];
    Stream stream(gpu);
    rank_main(over(std::move(world), gpu), stream);
  });
}

inline void RunHostStagedGpus(int size, const RankMain& rank_main) {
  RunEmulatedGpus(size, rank_main, [](std::unique_ptr<Communicator> world, Gpu& gpu) {
    return OverHostMemory(std::move(world), gpu);
  });
}

/// Does `work`, which may touch the device's memory: now on the CPU, else when the queue gets
/// there, each time that it does.
inline void RunOnDevice(Stream& stream, std::function<void()> work) {
  if (stream.device() == Device::kCpu) {
    work();
    return;
  }
  EnqueueHostWork(stream.queue().handle(), [work = std::move(work)] {
    return [&work] {
      work();
      return true;
    };
  });
}

/// A communicator as NCCL's is: calls wait in the stream, not in the host. The world below is one
/// of threads, whose queues meet in it.
class EnqueuedCommunicator final : public Communicator {
 public:
  explicit EnqueuedCommunicator(std::unique_ptr<Communicator> group) : group_(std::move(group)) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  bool capturable() const override { return true; }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    EnqueueOrRun(gathered.device(), stream, [=, this, rows = Copied(rows)](Stream& on_cpu) {
      group_->AllGatherRows(OnCpu(gathered), OnCpu(mine), rows, on_cpu);
    });
  }
  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    EnqueueOrRun(
        recv.device(), stream,
        [=, this, recv_rows = Copied(recv_rows), send_rows = Copied(send_rows)](Stream& on_cpu) {
          group_->AllToAllRows(OnCpu(recv), recv_rows, OnCpu(send), send_rows, on_cpu);
        });
  }
  void Broadcast(std::vector<std::byte>& message, int root) override {
    group_->Broadcast(message, root);
  }
  void Barrier() override { group_->Barrier(); }
  std::unique_ptr<Communicator> Split(int color) override {
    return std::make_unique<EnqueuedCommunicator>(group_->Split(color));
  }
  std::unique_ptr<Communicator> SplitByNode() override {
    return std::make_unique<EnqueuedCommunicator>(group_->SplitByNode());
  }

 private:
  static std::vector<std::int64_t> Copied(std::span<const std::int64_t> rows) {
    return {rows.begin(), rows.end()};
  }
  template <class View>
  static View OnCpu(View view) {
    CHECK(view.dense());
    return View(view.raw(), view.dtype(), view.shape());
  }
  template <class Call>
  static void EnqueueOrRun(Device device, Stream& stream, const Call& call) {
    const auto work = [call] {
      Stream on_cpu;
      call(on_cpu);
    };
    if (device == Device::kCpu) {
      work();
    } else {
      RunOnDevice(stream, work);
    }
  }

  std::unique_ptr<Communicator> group_;
};

inline void RunEnqueuedGpus(int size, const RankMain& rank_main) {
  RunEmulatedGpus(size, rank_main, [](std::unique_ptr<Communicator> world, Gpu& /*gpu*/) {
    return std::make_unique<EnqueuedCommunicator>(std::move(world));
  });
}

/// Memory for what the ranks of a node exchange.
inline Arena NewArenaFor(Communicator& node, std::int64_t bytes, Stream& stream) {
  return stream.device() == Device::kCpu ? node.NewArena(bytes) : Arena(stream.gpu(), bytes);
}

template <class T>
void Upload(TensorView view, const std::vector<T>& elements, Stream& stream) {
  Run(Copy{.out = view,
           .x = {reinterpret_cast<const std::byte*>(elements.data()), DTypeOf<T>(), view.shape()}},
      stream);
}

/// Waits for the stream.
template <class T>
std::vector<T> Download(ConstTensorView view, Stream& stream) {
  std::vector<T> elements(static_cast<std::size_t>(view.shape().elements()));
  Run(Copy{.out = {reinterpret_cast<std::byte*>(elements.data()), DTypeOf<T>(), view.shape()},
           .x = view},
      stream);
  stream.Synchronize();
  return elements;
}

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_DEVICE_WORLD_H_

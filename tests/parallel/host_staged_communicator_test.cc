// Ranks that share a GPU talk through this. What is copied too early or too late is a wrong byte;
// ranks that disagree on the number of pieces wait for each other for ever.

#include "parallel/host_staged_communicator.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "tests/parallel/communicator_conformance.h"
#include "tests/parallel/device_world.h"

namespace jubal {
namespace {

using Case = std::tuple<int, ConformanceCheck>;

class HostStagedCommunicatorTest : public testing::TestWithParam<Case> {};

TEST_P(HostStagedCommunicatorTest, ConformsOnGpuTensors) {
  const auto& [size, check] = GetParam();
  RunHostStagedGpus(size, [check = check.check](std::unique_ptr<Communicator> world,
                                                Stream& stream) { check(*world, stream); });
}

// Breaks: rows that do not fit into the buffers, and pieces that end within a row.
TEST_P(HostStagedCommunicatorTest, ConformsInManyPieces) {
  const auto& [size, check] = GetParam();
  RunEmulatedGpus(
      size,
      [check = check.check](std::unique_ptr<Communicator> world, Stream& stream) {
        check(*world, stream);
      },
      [](std::unique_ptr<Communicator> world, Gpu& gpu) {
        return OverHostMemory(std::move(world), gpu, 100'003);
      });
}

// Breaks: what the engine exchanges before and beside its tensors.
TEST_P(HostStagedCommunicatorTest, ConformsOnCpuTensors) {
  const auto& [size, check] = GetParam();
  RunHostStagedGpus(size,
                    [check = check.check](std::unique_ptr<Communicator> world, Stream& /*stream*/) {
                      Stream on_cpu;
                      check(*world, on_cpu);
                    });
}

INSTANTIATE_TEST_SUITE_P(Sizes, HostStagedCommunicatorTest,
                         testing::Combine(testing::Values(1, 2, 3, 8),
                                          testing::ValuesIn(ConformanceChecks())),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) +
                                  std::get<1>(info.param).name;
                         });

// Breaks: decoding on one GPU is recorded in no graph, or staging is, which cannot be.
TEST(HostStagedCommunicatorCaptureTest, OnlyARankAloneCanBeRecorded) {
  for (const int size : {1, 2}) {
    RunHostStagedGpus(size, [size](std::unique_ptr<Communicator> world, Stream& /*stream*/) {
      EXPECT_EQ(world->capturable(), size == 1);
      EXPECT_TRUE(world->Split(world->rank())->capturable());
    });
  }
  RunHostStagedGpus(1, [](std::unique_ptr<Communicator> world, Stream& stream) {
    Arena arena = world->NewArena(1 << 10);
    const TensorView sent = arena.Take(DType::kI32, {2, 1});
    const TensorView gathered = arena.Take(DType::kI32, {2, 1});
    const TensorView received = arena.Take(DType::kI32, {2, 1});
    const std::int64_t rows[] = {2};
    stream.queue().BeginCapture();
    world->AllGatherRows(gathered, sent, rows, stream);
    world->AllToAllRows(received, rows, gathered, rows, stream);
    const auto graph = stream.queue().EndCapture();
    for (const std::int32_t value : {3, 4}) {
      Upload(sent, std::vector<std::int32_t>{value, -value}, stream);
      stream.queue().Launch(*graph);
      EXPECT_EQ(Download<std::int32_t>(received, stream),
                (std::vector<std::int32_t>{value, -value}));
    }
  });
}

}  // namespace
}  // namespace jubal

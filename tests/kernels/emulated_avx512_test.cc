// The tests of the tiers run in this program too, on the emulated AVX-512 forms. This one is
// possible with the emulation only.

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/matmul_tiles.h"

namespace jubal {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kStepBytes = 256;

/// Lines that this thread's tiles prefetch, while a test wants to know.
thread_local std::set<std::int64_t>* fetched = nullptr;

}  // namespace

void RecordPrefetch(const void* address) {
  if (fetched == nullptr) return;
  fetched->insert(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address)) / kLine);
}

namespace {

struct alignas(kLine) Line {
  std::uint8_t bytes[kLine];
};

/// Operands of a panel of `turns` · 256 bytes of weights, all zeros, and the panel after it.
struct Operands {
  explicit Operands(std::int64_t turns)
      : weights(static_cast<std::size_t>(turns * kStepBytes / kLine)),
        next(weights.size()),
        x(static_cast<std::size_t>(kPanelRows * kPanelSteps * 2)),
        sums_of_x(static_cast<std::size_t>(kPanelRows * kPanelSteps)),
        scales(static_cast<std::size_t>(kPanelSteps * 64)),
        sums(static_cast<std::size_t>(kPanelRows * 64)) {}

  IntegerPanel Integers(std::int64_t rows, std::int64_t steps, std::int64_t group_steps) {
    return {.weights = weights[0].bytes,
            .steps = steps,
            .group_steps = group_steps,
            .x = reinterpret_cast<const std::byte*>(x.data()),
            .x_stride = kPanelSteps * kActivationStepBytes,
            .sums_of_x = sums_of_x.data(),
            .sums_of_x_stride = kPanelSteps,
            .scales = scales.data(),
            .scales_stride = 64,
            .rows = rows,
            .sums = sums.data(),
            .columns = 64,
            .next = next[0].bytes};
  }
  FloatPanel Floats(std::int64_t rows, std::int64_t k) {
    return {.weights = weights[0].bytes,
            .k = k,
            .x = x.data(),
            .x_stride = kPanelSteps * 2,
            .rows = rows,
            .sums = sums.data(),
            .columns = 64,
            .next = next[0].bytes};
  }

  std::vector<Line> weights;
  std::vector<Line> next;
  std::vector<float> x;
  std::vector<std::int32_t> sums_of_x;
  std::vector<float> scales;
  std::vector<float> sums;
};

/// Runs a tile and expects it to fetch every line of the next panel and few others.
template <class Panel>
void ExpectNextIsFetched(void (*tile)(const Panel&), const Panel& panel, const Operands& operands) {
  std::set<std::int64_t> lines;
  fetched = &lines;
  tile(panel);
  fetched = nullptr;
  const auto first =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(operands.next.data())) / kLine;
  const auto count = static_cast<std::int64_t>(operands.next.size());
  for (std::int64_t i = 0; i < count; ++i) ASSERT_TRUE(lines.contains(first + i)) << "line " << i;
  EXPECT_EQ(*lines.begin(), first);
  // Shares of a step are rounded up to bytes, and the last fetch takes a whole step.
  EXPECT_LE(*lines.rbegin(), first + count + count / 8 + kStepBytes / kLine);
}

// If this fails, weights are fetched when they are needed instead of before: right and slow.
TEST(EmulatedAvx512, FetchesTheNextPanel) {
  if (BestCpuIsa() < CpuIsa::kAvx512) GTEST_SKIP() << "the emulation needs AVX2";
  Operands full(kPanelSteps);
  Operands half(kPanelSteps / 2);
  for (std::int64_t rows = 1; rows <= kPanelRows; ++rows) {
    SCOPED_TRACE(std::to_string(rows) + " rows");
    ExpectNextIsFetched(kAvx512MatmulTiles.int8, full.Integers(rows, kPanelSteps, kPanelSteps),
                        full);
    ExpectNextIsFetched(kAvx512MatmulTiles.int4, half.Integers(rows, kPanelSteps, kPanelSteps),
                        half);
    ExpectNextIsFetched(kAvx512MatmulTiles.int4, half.Integers(rows, kPanelSteps, 8), half);
    ExpectNextIsFetched(kAvx512MatmulTiles.f32, full.Floats(rows, kPanelSteps), full);
    ExpectNextIsFetched(kAvx512MatmulTiles.bf16, full.Floats(rows, kPanelSteps * 2), full);
  }
}

}  // namespace
}  // namespace jubal

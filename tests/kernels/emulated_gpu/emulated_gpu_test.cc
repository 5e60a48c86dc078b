#include "tests/kernels/emulated_gpu/emulated_gpu.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/error.h"
#include "tests/kernels/emulated_gpu/cuda_on_fibers.h"

namespace jubal {
namespace {

/// A GPU whose kernels write where the host can look: pinned memory.
class EmulatedGpuTest : public testing::TestWithParam<FiberOrder> {
 protected:
  template <class T>
  T* Pinned(std::int64_t count) {
    memory_.push_back(gpu_->AllocatePinned(count * std::int64_t{sizeof(T)}));
    std::memset(memory_.back().get(), 0, static_cast<std::size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(memory_.back().get());
  }
  template <class T>
  T* OnGpu(std::int64_t count) {
    memory_.push_back(gpu_->Allocate(count * std::int64_t{sizeof(T)}));
    return reinterpret_cast<T*>(memory_.back().get());
  }
  template <class T>
  static void Copy(GpuQueue& queue, T* to, const T* from, std::int64_t count) {
    const std::int64_t bytes = count * std::int64_t{sizeof(T)};
    queue.Copy(reinterpret_cast<std::byte*>(to), bytes, reinterpret_cast<const std::byte*>(from),
               bytes, bytes, 1);
  }

  const std::unique_ptr<Gpu> gpu_ = OpenEmulatedGpu(GetParam());
  std::vector<std::shared_ptr<std::byte>> memory_;
  Stream stream_{*gpu_};
};

INSTANTIATE_TEST_SUITE_P(On, EmulatedGpuTest,
                         testing::Values(FiberOrder::kForward, FiberOrder::kBackward),
                         [](const auto& test) {
                           return test.param == FiberOrder::kForward ? "Forward" : "Backward";
                         });

__global__ void Add(int* to, int value) {
  if (threadIdx.x == 0) *to += value;
}

__global__ void WriteAt(int* to, std::int64_t index) { to[index] = 1; }

// Threads.

__global__ void HalfAtABarrier() {
  if (blockIdx.y == 1 && threadIdx.x < 48) __syncthreads();
}
__global__ void OneLaneLess() {
  if (threadIdx.x != 5) __syncwarp();
}
__global__ void AtDifferentPlaces() {
  if (threadIdx.x < 32 || threadIdx.x == 40) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}
__global__ void FirstWarpLeaves(int* out) {
  if (threadIdx.x < 32) return;
  out[threadIdx.x] = __shfl_xor_sync(kFullWarp, static_cast<int>(threadIdx.x), 1);
}

// Breaks: a kernel that hangs a GPU hangs its test, too, or passes it.
TEST_P(EmulatedGpuTest, ThreadsThatWaitForEverEndTheProcess) {
  const auto run = [this](void (*kernel)(), dim3 grid) {
    Launch(stream_, kernel, grid, 64, 0);
    stream_.Synchronize();
  };
  EXPECT_DEATH(run(HalfAtABarrier, {1, 2}),
               "emulated_gpu_test.cc:[0-9]+: the kernel launched here, block \\(0, 1, 0\\), waits "
               "for ever: of 64 threads 16 have left, 48 wait at __syncthreads, 0 for their warp");
  EXPECT_DEATH(run(OneLaneLess, {1}),
               "of 64 threads 33 have left, 0 wait at __syncthreads, 31 for their warp");
  EXPECT_DEATH(run(AtDifferentPlaces, {1}),
               "of 64 threads 0 have left, 33 wait at __syncthreads, 31 for their warp");
}

// Breaks: kernels in which warps without work return at once cannot be tested.
TEST_P(EmulatedGpuTest, AWarpMayLeaveBeforeOthers) {
  int* const out = Pinned<int>(96);
  Launch(stream_, FirstWarpLeaves, 1, 96, 0, out);
  stream_.Synchronize();
  for (int i = 0; i < 96; ++i) EXPECT_EQ(out[i], i < 32 ? 0 : i ^ 1);
}

__global__ void RightNeighbours(int* out, bool barrier) {
  int* const shared = &BlockShared<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

// Breaks: a missing barrier is not found: with it both orders agree, without it they do not.
TEST(FiberOrderTest, ShowsAMissingBarrier) {
  std::vector<std::vector<int>> results;
  for (const bool barrier : {true, false}) {
    for (const FiberOrder order : {FiberOrder::kForward, FiberOrder::kBackward}) {
      const std::unique_ptr<Gpu> gpu = OpenEmulatedGpu(order);
      Stream stream(*gpu);
      const auto memory = gpu->AllocatePinned(64 * 4);
      auto* const out = reinterpret_cast<int*>(memory.get());
      Launch(stream, RightNeighbours, 1, 64, 64 * 4, out, barrier);
      stream.Synchronize();
      results.emplace_back(out, out + 64);
    }
  }
  EXPECT_EQ(results[0], results[1]);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(results[0][static_cast<std::size_t>(i)], (i + 1) % 64);
  EXPECT_NE(results[2], results[3]);
}

__global__ void ReadShared(std::uint32_t* out, std::uint32_t write) {
  std::uint32_t* const shared = &BlockShared<std::uint32_t>();
  out[blockIdx.x * 32 + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = write;
}

// Breaks: a kernel relies on what an earlier block left in shared memory.
TEST_P(EmulatedGpuTest, SharedMemoryOfABlockBeginsAsNan) {
  auto* const out = Pinned<std::uint32_t>(64);
  Launch(stream_, ReadShared, 2, 32, 32 * 4, out, 7u);
  stream_.Synchronize();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], 0xffffffffu);
}

// Warps.

struct Exchanged {
  int of_lane, xor_5, down_3, up_3, negative, any, all;
  unsigned even;
  double wide;
};

__global__ void Exchange(Exchanged* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int mine = static_cast<int>(100 * (threadIdx.x / 32)) + lane;
  Exchanged& result = out[threadIdx.x];
  result.of_lane = __shfl_sync(kFullWarp, mine, 7);
  result.xor_5 = __shfl_xor_sync(kFullWarp, mine, 5);
  result.down_3 = __shfl_down_sync(kFullWarp, mine, 3);
  result.up_3 = __shfl_up_sync(kFullWarp, mine, 3);
  result.negative = __shfl_sync(kFullWarp, -mine, 31 - lane);
  result.even = __ballot_sync(kFullWarp, static_cast<int>(mine % 2 == 0));
  result.any = __any_sync(kFullWarp, static_cast<int>(mine == 131));
  result.all = __all_sync(kFullWarp, static_cast<int>(mine < 100));
  result.wide = __shfl_xor_sync(kFullWarp, mine + 0.5, 16);
}

// Breaks: kernels are right here and wrong on a GPU, or the other way round.
TEST_P(EmulatedGpuTest, LanesExchangeValues) {
  auto* const out = Pinned<Exchanged>(64);
  Launch(stream_, Exchange, 1, 64, 0, out);
  stream_.Synchronize();
  for (int thread = 0; thread < 64; ++thread) {
    const int lane = thread % 32;
    const int base = thread / 32 * 100;
    const Exchanged& result = out[thread];
    EXPECT_EQ(result.of_lane, base + 7);
    EXPECT_EQ(result.xor_5, base + (lane ^ 5));
    EXPECT_EQ(result.down_3, base + (lane < 29 ? lane + 3 : lane));
    EXPECT_EQ(result.up_3, base + (lane >= 3 ? lane - 3 : lane));
    EXPECT_EQ(result.negative, -(base + 31 - lane));
    EXPECT_EQ(result.even, 0x55555555u);
    EXPECT_EQ(result.any != 0, thread >= 32);
    EXPECT_EQ(result.all != 0, thread < 32);
    EXPECT_EQ(result.wide, base + (lane ^ 16) + 0.5);
  }
}

// Fragments by element, as the PTX ISA numbers them: rows and columns of element i in lane l.
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k32" (4 elements in a word) and
// "… mma.m16n8k16" (2 in a word); word i / 4 or i / 2 holds element i in its lowest free bits.
template <class T>
struct FragmentPlaces {
  static constexpr int kInWord = 4 / int{sizeof(T)};
  static constexpr int kK = 8 * kInWord;
  static int RowOfA(int lane, int i) { return lane / 4 + (i / kInWord % 2 == 0 ? 0 : 8); }
  static int ColumnOfA(int lane, int i) {
    return lane % 4 * kInWord + i % kInWord + (i < 2 * kInWord ? 0 : kK / 2);
  }
  static int RowOfB(int lane, int i) {
    return lane % 4 * kInWord + i % kInWord + (i < kInWord ? 0 : kK / 2);
  }
  static int ColumnOfB(int lane) { return lane / 4; }
  static int RowOfD(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
  static int ColumnOfD(int lane, int i) { return lane % 4 * 2 + i % 2; }
};

void MultiplyFragments(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                       const std::uint32_t (&b)[2]) {
  MmaInt8(d, a, b);
}
void MultiplyFragments(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  MmaBf16(d, a, b);
}

/// d [16, 8] += a [16, k] · b [k, 8], twice.
template <class T, class Sum>
__global__ void MultiplyTwice(Sum* d, const T* a, const T* b) {
  using Places = FragmentPlaces<T>;
  const int lane = static_cast<int>(threadIdx.x);
  T of_a[4 * Places::kInWord];
  T of_b[2 * Places::kInWord];
  Sum of_d[4];
  for (int i = 0; i < 4 * Places::kInWord; ++i) {
    of_a[i] = a[Places::RowOfA(lane, i) * Places::kK + Places::ColumnOfA(lane, i)];
  }
  for (int i = 0; i < 2 * Places::kInWord; ++i) {
    of_b[i] = b[Places::RowOfB(lane, i) * 8 + Places::ColumnOfB(lane)];
  }
  for (int i = 0; i < 4; ++i) of_d[i] = d[Places::RowOfD(lane, i) * 8 + Places::ColumnOfD(lane, i)];
  std::uint32_t words_of_a[4];
  std::uint32_t words_of_b[2];
  std::memcpy(words_of_a, of_a, sizeof(of_a));
  std::memcpy(words_of_b, of_b, sizeof(of_b));
  MultiplyFragments(of_d, words_of_a, words_of_b);
  MultiplyFragments(of_d, words_of_a, words_of_b);
  for (int i = 0; i < 4; ++i) d[Places::RowOfD(lane, i) * 8 + Places::ColumnOfD(lane, i)] = of_d[i];
}

// Breaks: fragments lie elsewhere than on a GPU, and kernels that pass here compute nonsense there.
TEST_P(EmulatedGpuTest, MultipliesFragmentsOfBytes) {
  std::mt19937 random(1);
  auto* const a = Pinned<std::int8_t>(16 * 32);
  auto* const b = Pinned<std::int8_t>(32 * 8);
  auto* const d = Pinned<std::int32_t>(16 * 8);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 16 * 32; ++i) a[i] = static_cast<std::int8_t>(round == 0 ? -128 : random());
    for (int i = 0; i < 32 * 8; ++i) b[i] = static_cast<std::int8_t>(round == 0 ? -128 : random());
    std::vector<std::int32_t> expected;
    for (int i = 0; i < 16 * 8; ++i) {
      std::int64_t sum = d[i] = static_cast<std::int32_t>(round == 1 ? 0x7fffffff : random());
      for (int k = 0; k < 32; ++k) sum += 2 * a[i / 8 * 32 + k] * b[k * 8 + i % 8];
      expected.push_back(static_cast<std::int32_t>(sum));
    }
    Launch(stream_, MultiplyTwice<std::int8_t, std::int32_t>, 1, 32, 0, d, a, b);
    stream_.Synchronize();
    EXPECT_EQ(std::vector<std::int32_t>(d, d + 16 * 8), expected);
  }
}

TEST_P(EmulatedGpuTest, MultipliesFragmentsOfBfloat16) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const auto round = [](float value) {
    return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, value) >> 16);
  };
  const auto widen = [](std::uint16_t bits) {
    return __builtin_bit_cast(float, std::uint32_t{bits} << 16);
  };
  auto* const a = Pinned<std::uint16_t>(16 * 16);
  auto* const b = Pinned<std::uint16_t>(16 * 8);
  auto* const d = Pinned<float>(16 * 8);
  for (int i = 0; i < 16 * 16; ++i) a[i] = round(normal(random));
  for (int i = 0; i < 16 * 8; ++i) b[i] = round(normal(random));
  std::vector<float> expected;
  for (int i = 0; i < 16 * 8; ++i) {
    float sum = d[i] = normal(random);
    for (int k = 0; k < 32; ++k)
      sum += widen(a[i / 8 * 16 + k % 16]) * widen(b[k % 16 * 8 + i % 8]);
    expected.push_back(sum);
  }
  Launch(stream_, MultiplyTwice<std::uint16_t, float>, 1, 32, 0, d, a, b);
  stream_.Synchronize();
  EXPECT_EQ(std::vector<float>(d, d + 16 * 8), expected);
}

struct alignas(16) Sixteen {
  std::uint32_t words[4];
};

__global__ void CopyLate(std::uint32_t* out, const Sixteen* from) {
  Sixteen* const shared = &BlockShared<Sixteen>() + 2 * threadIdx.x;
  const auto note = [&](int when) {
    for (int i = 0; i < 2; ++i) out[threadIdx.x * 6 + 2 * when + i] = shared[i].words[3];
  };
  for (int i = 0; i < 2; ++i) {
    CopyAsync16(&shared[i], &from[i]);
    CommitCopies();
  }
  note(0);
  WaitForCopies<1>();
  note(1);
  WaitForCopies<0>();
  note(2);
}

// Breaks: a kernel that reads what it has not waited for passes its tests.
TEST_P(EmulatedGpuTest, AsynchronousCopiesEndWhereTheyAreWaitedFor) {
  auto* const out = Pinned<std::uint32_t>(32 * 6);
  auto* const from = Pinned<Sixteen>(2);
  from[0] = {{1, 2, 3, 4}};
  from[1] = {{5, 6, 7, 8}};
  Launch(stream_, CopyLate, 1, 32, 64 * sizeof(Sixteen), out, from);
  stream_.Synchronize();
  constexpr std::uint32_t kNot = 0xffffffffu;
  const std::array<std::uint32_t, 6> expected{kNot, kNot, 4, kNot, 4, 8};
  for (int i = 0; i < 32 * 6; ++i) EXPECT_EQ(out[i], expected[static_cast<std::size_t>(i % 6)]);
}

// Memory.

// Breaks: code that reads a GPU's memory from the host passes its tests.
TEST_P(EmulatedGpuTest, TheHostCannotTouchDeviceMemory) {
  auto* const memory = OnGpu<int>(1000);
  volatile int* const first = memory;
  volatile int* const last = memory + 999;
  EXPECT_DEATH(*first = 1, "");
  EXPECT_DEATH((void)*last, "");
  Launch(stream_, WriteAt, 1, 32, 0, memory, std::int64_t{0});
  EXPECT_DEATH((void)*first, "");
  stream_.Synchronize();
  EXPECT_DEATH((void)*first, "");
}

// Breaks: kernels that write beyond their operands pass their tests.
TEST_P(EmulatedGpuTest, WhatRunsOverAnEndFaults) {
  auto* const memory = OnGpu<int>(16 * 1001);
  const auto write = [&](std::int64_t index) {
    Launch(stream_, WriteAt, 1, 32, 0, memory, index);
    stream_.Synchronize();
  };
  write(16 * 1001 - 1);
  EXPECT_DEATH(write(16 * 1001), "");
  EXPECT_DEATH(write(-1024), "");
}

TEST_P(EmulatedGpuTest, GivesZeroedMemoryWithinItsSize) {
  auto* const memory = OnGpu<int>(1000);
  auto* const out = Pinned<int>(1000);
  std::fill_n(out, 1000, 1);
  Copy(stream_.queue(), out, memory, 1000);
  stream_.Synchronize();
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(out[i], 0);
  EXPECT_THROW(gpu_->Allocate(gpu_->info().memory_bytes + 1), UserError);
}

// Queues.

// Breaks: a missing Synchronize passes its tests.
TEST_P(EmulatedGpuTest, WorkIsLate) {
  int* const out = Pinned<int>(1);
  Launch(stream_, Add, 1, 32, 0, out, 1);
  EXPECT_EQ(*out, 0);
  stream_.Synchronize();
  EXPECT_EQ(*out, 1);
}

// Breaks: host memory that changes too early, which a GPU sees in one case and not in the other.
TEST_P(EmulatedGpuTest, ReadsPageableMemoryAtTheCallAndPinnedMemoryLater) {
  std::array<int, 2> pageable{1, 0};
  int* const pinned = Pinned<int>(1);
  int* const memory = OnGpu<int>(2);
  *pinned = 1;
  Copy(stream_.queue(), memory, pageable.data(), 1);
  Copy(stream_.queue(), memory + 1, pinned, 1);
  pageable[0] = 2;
  *pinned = 2;
  Copy(stream_.queue(), pageable.data(), memory, 2);
  EXPECT_EQ(pageable, (std::array<int, 2>{2, 0}));
  stream_.Synchronize();
  EXPECT_EQ(pageable, (std::array<int, 2>{1, 2}));
}

// Breaks: a graph that is launched again computes with what it saw when it was recorded.
TEST_P(EmulatedGpuTest, GraphsRunAgainOnTheSameAddresses) {
  int* const in = Pinned<int>(1);
  int* const out = Pinned<int>(1);
  int* const memory = OnGpu<int>(1);
  GpuQueue& queue = stream_.queue();
  *in = 1;
  queue.BeginCapture();
  Copy(queue, memory, in, 1);
  Launch(stream_, Add, 1, 32, 0, memory, 10);
  Copy(queue, out, memory, 1);
  const std::unique_ptr<GpuGraph> graph = queue.EndCapture();
  queue.Synchronize();
  EXPECT_EQ(*out, 0);
  for (const int value : {1, 5}) {
    *in = value;
    queue.Launch(*graph);
    queue.Synchronize();
    EXPECT_EQ(*out, value + 10);
  }
}

// Breaks: what cannot be captured on a GPU is found only there.
TEST_P(EmulatedGpuTest, CapturesNothingThatWaits) {
  int pageable = 0;
  int* const memory = OnGpu<int>(1);
  GpuQueue& queue = stream_.queue();
  queue.BeginCapture();
  EXPECT_DEATH(Copy(queue, memory, &pageable, 1), "capturing_");
  EXPECT_DEATH(Copy(queue, &pageable, memory, 1), "capturing_");
  EXPECT_DEATH(queue.Synchronize(), "capturing_");
  EXPECT_DEATH(queue.Done(), "capturing_");
  queue.EndCapture();
}

__global__ void TakeAMillisecond() {
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(1)) {
  }
}

// Breaks: benchmarks time what the host did, and not the GPU.
TEST_P(EmulatedGpuTest, MarksArePassedWhenTheQueueGetsThere) {
  GpuQueue& queue = stream_.queue();
  const auto from = queue.NewMark();
  Launch(stream_, TakeAMillisecond, 1, 32, 0);
  const auto to = queue.NewMark();
  queue.Synchronize();
  EXPECT_GE(queue.SecondsBetween(*from, *to), 32e-3);
}

// Breaks: work of two queues runs in an order that nobody asked for, and no test tells.
TEST_P(EmulatedGpuTest, OneQueueWaitsForAnotherWhereItIsTold) {
  int* const value = Pinned<int>(1);
  int* const seen = Pinned<int>(1);
  Stream other(*gpu_);
  Launch(stream_, Add, 1, 32, 0, value, 1);
  Copy(other.queue(), seen, value, 1);
  other.Synchronize();
  EXPECT_EQ(*seen, 0);
  other.queue().WaitFor(stream_.queue());
  Copy(other.queue(), seen, value, 1);
  other.Synchronize();
  EXPECT_EQ(*seen, 1);
}

}  // namespace
}  // namespace jubal

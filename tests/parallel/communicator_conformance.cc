#include "tests/parallel/communicator_conformance.h"

#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <thread>

#include "kernels/copy.h"
#include "kernels/run.h"

namespace jubal {
namespace {

using Counts = std::vector<std::int64_t>;
using Ints = std::vector<std::int32_t>;

constexpr std::int32_t kUntouched = -1;

std::size_t Index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// [rows, n] i32 on the stream's device, with an address even when empty; in `memory`, if that is
/// given.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t n, Stream& stream, TensorView memory = {})
      : stream_(stream) {
    const Shape shape{rows, n};
    const std::int64_t bytes = shape.elements() * SizeOf(DType::kI32);
    const bool on_cpu = stream.device() == Device::kCpu;
    if (memory.empty()) {
      own_ = on_cpu ? Arena(bytes + 1) : Arena(stream.gpu(), bytes + 1);
      memory = own_.Take(DType::kU8, {bytes});
    }
    EXPECT_LE(bytes, memory.bytes());
    view_ = TensorView(memory.raw(), DType::kI32, shape, memory.device());
    host_ = view_;
    if (!on_cpu) {
      copy_.resize(Index(shape.elements()) + 1);
      host_ = TensorView(reinterpret_cast<std::byte*>(copy_.data()), DType::kI32, shape);
    }
    Fill();
  }

  TensorView view() const { return view_; }
  std::int64_t rows() const { return view_.size(0); }

  /// What the host sees: view(), or on a GPU what Upload takes from and Download brings to.
  TensorView host() const { return host_; }
  std::int32_t& at(std::int64_t row, std::int64_t column) const {
    return host_.row<std::int32_t>(row)[column];
  }
  void Upload() {
    if (view_.device() != Device::kCpu) Run(Copy{.out = view_, .x = host_}, stream_);
  }
  void Download() {
    if (view_.device() == Device::kCpu) return;
    Run(Copy{.out = host_, .x = view_}, stream_);
    stream_.Synchronize();
  }

  /// With kUntouched.
  void Fill() {
    std::fill_n(host_.data<std::int32_t>(), host_.shape().elements(), kUntouched);
    Upload();
  }

 private:
  Stream& stream_;
  Arena own_;
  Ints copy_;
  TensorView view_;
  TensorView host_;
};

/// Which ranks send rows that lie in memory from NewArena.
enum class InArena { kNone, kAll, kOdd };
constexpr InArena kInArena[] = {InArena::kNone, InArena::kAll, InArena::kOdd};

/// This rank's memory for what it sends: an arena's, or none.
class SendMemory {
 public:
  SendMemory(Communicator& world, std::int64_t bytes, Stream& stream)
      : rank_(world.rank()),
        arena_(world.SplitByNode()->NewArena(bytes)),
        memory_(arena_.Take(DType::kU8, {bytes})) {
    if (memory_.device() != stream.device()) memory_ = TensorView();
  }

  TensorView For(InArena which) const {
    const bool mine = which == InArena::kAll || (which == InArena::kOdd && rank_ % 2 == 1);
    return mine ? memory_ : TensorView();
  }

 private:
  int rank_;
  Arena arena_;
  TensorView memory_;
};

/// Tells sender, receiver, row and column apart.
std::int32_t ValueOf(std::int64_t from, std::int64_t to, std::int64_t row, std::int64_t column) {
  return static_cast<std::int32_t>(((from * 31 + to) * 1009 + row) * 7919 + column);
}

/// Rows that `from` sends to `to` in a round: often none, the same on all ranks.
std::int64_t RowsBetween(std::int64_t from, std::int64_t to, std::int64_t round) {
  std::mt19937 random(static_cast<unsigned>(from * 64 + to + 4096 * round));
  return std::max<std::int64_t>(0, static_cast<std::int64_t>(random() % 8) - 3);
}

// Row widths on both sides of the lengths where transports change their ways.
constexpr std::int64_t kWidths[] = {1, 17, 1500, 6144, 40000};
constexpr std::int64_t kMostRows = 4;  // see RowsBetween
constexpr std::int64_t kMostBytes = kMostRows * 40000 * 4;

/// Calls `gather(rows, mine, total, in_rank_order)` with all kinds of rows.
template <class Gather>
void ForRowsOfAllKinds(Communicator& world, Stream& stream, Gather gather) {
  const SendMemory memory(world, kMostBytes, stream);
  for (const std::int64_t width : kWidths) {
    for (std::int64_t round = 0; round < 3; ++round) {
      Counts rows;
      for (int r = 0; r < world.size(); ++r) rows.push_back(RowsBetween(r, 0, round));
      Matrix mine(rows[Index(world.rank())], width, stream,
                  memory.For(kInArena[static_cast<std::size_t>(round)]));
      for (std::int64_t i = 0; i < mine.rows(); ++i) {
        for (std::int64_t j = 0; j < width; ++j) mine.at(i, j) = ValueOf(world.rank(), 0, i, j);
      }
      mine.Upload();
      SCOPED_TRACE(testing::Message() << "width " << width << ", round " << round);
      gather(rows, mine);
    }
  }
}

bool HasRowsOf(int rank, ConstTensorView view) {
  for (std::int64_t i = 0; i < view.size(0); ++i) {
    for (std::int64_t j = 0; j < view.size(1); ++j) {
      if (view.row<std::int32_t>(i)[j] != ValueOf(rank, 0, i, j)) return false;
    }
  }
  return true;
}

std::int64_t Total(const Counts& rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

void AllGatherPlacesRowsInRankOrder(Communicator& world, Stream& stream) {
  ForRowsOfAllKinds(world, stream, [&](const Counts& rows, Matrix& mine) {
    const std::int64_t width = mine.view().size(1);
    Matrix gathered(Total(rows) + 1, width, stream);  // one row more than needed
    world.AllGatherRows(gathered.view(), mine.view(), rows, stream);
    mine.Fill();  // sent rows are the sender's again
    gathered.Download();
    std::int64_t place = 0;
    for (int r = 0; r < world.size(); ++r) {
      EXPECT_TRUE(HasRowsOf(r, gathered.host().Rows(place, rows[Index(r)]))) << "rank " << r;
      place += rows[Index(r)];
    }
    EXPECT_EQ(gathered.at(place, 0), kUntouched);
    EXPECT_EQ(gathered.at(place, width - 1), kUntouched);
  });
}

void VisitShowsTheRowsOfEachRank(Communicator& world, Stream& stream) {
  ForRowsOfAllKinds(world, stream, [&](const Counts& rows, Matrix& mine) {
    const std::int64_t width = mine.view().size(1);
    Matrix gathered(Total(rows), width, stream);
    Matrix visited(Total(rows), width, stream);
    int visits = 0;
    std::int64_t place = 0;
    const auto visit = [&](std::span<const ConstTensorView> rows_of_rank) {
      ++visits;
      ASSERT_EQ(static_cast<int>(rows_of_rank.size()), world.size());
      // A slow reader sees the rows to the end of the visit.
      if (world.rank() == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
      for (int r = 0; r < world.size(); ++r) {
        EXPECT_EQ(rows_of_rank[Index(r)].shape(), (Shape{rows[Index(r)], width}));
        Run(Copy{.out = visited.view().Rows(place, rows[Index(r)]), .x = rows_of_rank[Index(r)]},
            stream);
        place += rows[Index(r)];
      }
    };
    world.VisitRows(gathered.view(), mine.view(), rows, visit, stream);
    EXPECT_EQ(visits, 1);
    mine.Fill();
    visited.Download();
    place = 0;
    for (int r = 0; r < world.size(); ++r) {
      EXPECT_TRUE(HasRowsOf(r, visited.host().Rows(place, rows[Index(r)]))) << "rank " << r;
      place += rows[Index(r)];
    }
  });
}

void AllGatherTakesRowsFromTheirOwnPlace(Communicator& world, Stream& stream) {
  constexpr std::int64_t kRows = 2;
  const SendMemory memory(world, world.size() * kMostBytes, stream);
  for (const InArena in_arena : kInArena) {
    for (const std::int64_t width : kWidths) {
      Matrix gathered(kRows * world.size(), width, stream, memory.For(in_arena));
      const std::int64_t first = kRows * world.rank();
      for (std::int64_t i = 0; i < kRows; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          gathered.at(first + i, j) = ValueOf(world.rank(), 0, i, j);
        }
      }
      gathered.Upload();
      world.AllGatherRows(gathered.view(), gathered.view().Rows(first, kRows),
                          Counts(Index(world.size()), kRows), stream);
      gathered.Download();
      for (int r = 0; r < world.size(); ++r) {
        EXPECT_TRUE(HasRowsOf(r, gathered.host().Rows(kRows * r, kRows)))
            << "rank " << r << ", width " << width;
      }
    }
  }
}

void AllToAllDeliversToEachItsRows(Communicator& world, Stream& stream) {
  const SendMemory memory(world, world.size() * kMostBytes, stream);
  for (const std::int64_t width : kWidths) {
    for (std::int64_t round = 0; round < 3; ++round) {
      Counts send_rows;
      Counts recv_rows;
      std::int64_t sent = 0;
      std::int64_t received = 0;
      for (int r = 0; r < world.size(); ++r) {
        sent += send_rows.emplace_back(RowsBetween(world.rank(), r, round));
        received += recv_rows.emplace_back(RowsBetween(r, world.rank(), round));
      }
      Matrix send(sent, width, stream, memory.For(kInArena[static_cast<std::size_t>(round)]));
      std::int64_t place = 0;
      for (int r = 0; r < world.size(); ++r) {
        for (std::int64_t i = 0; i < send_rows[Index(r)]; ++i, ++place) {
          for (std::int64_t j = 0; j < width; ++j) {
            send.at(place, j) = ValueOf(world.rank(), r, i, j);
          }
        }
      }
      send.Upload();
      Matrix recv(received + 1, width, stream);
      world.AllToAllRows(recv.view(), recv_rows, send.view(), send_rows, stream);
      send.Fill();
      recv.Download();
      place = 0;
      bool right = true;
      for (int r = 0; r < world.size(); ++r) {
        for (std::int64_t i = 0; i < recv_rows[Index(r)]; ++i, ++place) {
          for (std::int64_t j = 0; j < width; ++j) {
            right = right && recv.at(place, j) == ValueOf(r, world.rank(), i, j);
          }
        }
      }
      EXPECT_TRUE(right) << "width " << width << ", round " << round;
      EXPECT_EQ(recv.at(received, 0), kUntouched);
    }
  }
}

void BroadcastCarriesMessagesOfAnyLength(Communicator& world, Stream& /*stream*/) {
  for (int root = 0; root < world.size(); ++root) {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{500},
                                    std::size_t{3'000'000}, std::size_t{7}}) {
      const auto value = static_cast<std::byte>(bytes + static_cast<std::size_t>(root));
      std::vector<std::byte> message(33, std::byte{0xEE});  // what is there is replaced
      if (world.rank() == root) message.assign(bytes, value);
      world.Broadcast(message, root);
      EXPECT_EQ(message.size(), bytes);
      EXPECT_TRUE(std::all_of(message.begin(), message.end(),
                              [&](std::byte byte) { return byte == value; }));
    }
  }
}

std::int64_t CpuNanoseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec;
}

void WaitingForABroadcastCostsLittleCpu(Communicator& world, Stream& /*stream*/) {
  constexpr std::chrono::milliseconds kIdle{400};
  world.Barrier();
  const std::int64_t before = CpuNanoseconds();
  if (world.rank() == 0) std::this_thread::sleep_for(kIdle);
  std::vector<std::byte> message(1);
  world.Broadcast(message, 0);
  const std::int64_t spent = CpuNanoseconds() - before;
  // A spinning wait would spend all of it; sanitizers and busy machines deserve some slack.
  EXPECT_LT(spent, std::chrono::nanoseconds(kIdle).count() / 10);
}

void NobodyPassesABarrierBeforeTheLastArrives(Communicator& world, Stream& /*stream*/) {
  using Clock = std::chrono::steady_clock;  // one clock for all processes of a host
  Stream on_cpu;
  for (int late = 0; late < world.size(); ++late) {
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const std::int64_t arrived = Clock::now().time_since_epoch().count();
    world.Barrier();
    const std::int64_t passed = Clock::now().time_since_epoch().count();
    std::vector<std::int64_t> arrivals(Index(world.size()));
    const Counts rows(Index(world.size()), 1);
    world.AllGatherRows(
        TensorView(reinterpret_cast<std::byte*>(arrivals.data()), DType::kI64, {world.size(), 1}),
        ConstTensorView(reinterpret_cast<const std::byte*>(&arrived), DType::kI64, {1, 1}), rows,
        on_cpu);
    EXPECT_GE(passed, *std::max_element(arrivals.begin(), arrivals.end()));
  }
}

/// The numbers that a group's members bring, in the group's order.
Ints Roll(Communicator& group, std::int32_t number, Stream& stream, TensorView memory = {}) {
  Matrix mine(1, 1, stream, memory);
  mine.at(0, 0) = number;
  mine.Upload();
  Matrix all(group.size(), 1, stream);
  group.AllGatherRows(all.view(), mine.view(), Counts(Index(group.size()), 1), stream);
  all.Download();
  const std::int32_t* const numbers = all.host().data<std::int32_t>();
  return Ints(numbers, numbers + group.size());
}

Ints RanksWhere(const Communicator& world, bool (*holds)(int rank, int of), int of) {
  Ints ranks;
  for (int r = 0; r < world.size(); ++r) {
    if (holds(r, of)) ranks.push_back(r);
  }
  return ranks;
}

void SplitGroupsByColourInRankOrder(Communicator& world, Stream& stream) {
  const SendMemory memory(world, 4, stream);
  const auto same_third = [](int rank, int of) { return rank % 3 == of % 3; };
  const auto thirds = world.Split(world.rank() % 3);
  EXPECT_EQ(Roll(*thirds, world.rank(), stream), RanksWhere(world, same_third, world.rank()));
  EXPECT_EQ(thirds->rank(), world.rank() / 3);

  // A group splits again, and parent and part do not hear each other's messages.
  const auto same_sixth = [](int rank, int of) { return rank % 6 == of % 6; };
  const auto sixths = thirds->Split(thirds->rank() % 2);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(Roll(*sixths, world.rank(), stream), RanksWhere(world, same_sixth, world.rank()));
    EXPECT_EQ(Roll(*thirds, world.rank(), stream, memory.For(InArena::kOdd)),
              RanksWhere(world, same_third, world.rank()));
  }

  const auto alone = world.Split(world.rank());
  EXPECT_EQ(alone->size(), 1);
  EXPECT_EQ(Roll(*alone, world.rank(), stream), Ints{world.rank()});
}

void SplitByNodeKeepsTheRanksOfOneHost(Communicator& world, Stream& stream) {
  const auto node = world.SplitByNode();  // tests run on one host
  EXPECT_EQ(node->size(), world.size());
  EXPECT_EQ(node->rank(), world.rank());
  EXPECT_EQ(Roll(*node, world.rank(), stream), Roll(world, world.rank(), stream));
}

void CallsOfUnevenRanksStayInOrder(Communicator& world, Stream& stream) {
  const SendMemory memory(world, 4, stream);
  std::mt19937 random(static_cast<unsigned>(world.rank()));
  for (std::int32_t i = 0; i < 200; ++i) {
    if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    const InArena in_arena = kInArena[Index(i % 3)];
    const Ints roll = Roll(world, 1000 * i + world.rank(), stream, memory.For(in_arena));
    for (int r = 0; r < world.size(); ++r) EXPECT_EQ(roll[Index(r)], 1000 * i + r);
    std::vector<std::byte> message;
    if (world.rank() == i % world.size()) message.assign(Index(i), std::byte{1});
    world.Broadcast(message, i % world.size());
    EXPECT_EQ(message.size(), Index(i));
    if (i % 32 == 0) world.Barrier();
  }
}

}  // namespace

const std::vector<ConformanceCheck>& ConformanceChecks() {
  static const std::vector<ConformanceCheck> checks = {
      {"AllGatherPlacesRowsInRankOrder", AllGatherPlacesRowsInRankOrder},
      {"VisitShowsTheRowsOfEachRank", VisitShowsTheRowsOfEachRank},
      {"AllGatherTakesRowsFromTheirOwnPlace", AllGatherTakesRowsFromTheirOwnPlace},
      {"AllToAllDeliversToEachItsRows", AllToAllDeliversToEachItsRows},
      {"BroadcastCarriesMessagesOfAnyLength", BroadcastCarriesMessagesOfAnyLength},
      {"WaitingForABroadcastCostsLittleCpu", WaitingForABroadcastCostsLittleCpu},
      {"NobodyPassesABarrierBeforeTheLastArrives", NobodyPassesABarrierBeforeTheLastArrives},
      {"SplitGroupsByColourInRankOrder", SplitGroupsByColourInRankOrder},
      {"SplitByNodeKeepsTheRanksOfOneHost", SplitByNodeKeepsTheRanksOfOneHost},
      {"CallsOfUnevenRanksStayInOrder", CallsOfUnevenRanksStayInOrder},
  };
  return checks;
}

}  // namespace jubal

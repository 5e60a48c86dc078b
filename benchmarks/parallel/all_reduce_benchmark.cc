// Time of an all-reduce between ranks of one host, through shared memory and through MPI.
//
// Run by mpirun, with a core for each rank: mpirun -n 2 parallel_all_reduce_benchmark. A call's
// time is the slowest rank's. The two ways take turns, and all ranks meet before each call, so that
// neither waits for ranks that are late.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "kernels/arena.h"
#include "kernels/chunks.h"
#include "parallel/all_reduce.h"
#include "parallel/mpi_communicator.h"
#include "parallel/shared_memory_communicator.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;
using Microseconds = std::vector<double>;

struct Case {
  std::int64_t rows;
  std::int64_t n;
  int calls;
};
// Rows as wide as the activations of Mixtral-like and of Grok-1's models.
constexpr Case kCases[] = {{1, 3072, 20000}, {1, 6144, 20000}, {8, 3072, 5000},
                           {8, 6144, 5000},  {32, 6144, 2000}, {256, 6144, 200}};

/// The operands of one rank.
class Operands {
 public:
  Operands(const Case& c, Communicator& group)
      : subtrees_(static_cast<std::int64_t>(
            MaximalSubtrees(OwnedChunks(group.rank(), group.size())).size())),
        workspace_bytes_(AllReduceTreeBytes(group.size(), c.rows, c.n)),
        arena_(group.NewArena((subtrees_ + 1) * ArenaBytes(c.rows * c.n * SizeOf(DType::kF32)) +
                              ArenaBytes(workspace_bytes_))),
        partials_(arena_.Take(DType::kF32, {subtrees_, c.rows, c.n})),
        op_{.out = arena_.Take(DType::kF32, {c.rows, c.n}),
            .partials = partials_,
            .workspace = arena_.Take(DType::kU8, {workspace_bytes_})} {}

  const AllReduceTree& op() const { return op_; }
  TensorView partials() const { return partials_; }

 private:
  std::int64_t subtrees_;
  std::int64_t workspace_bytes_;
  Arena arena_;
  TensorView partials_;
  AllReduceTree op_;
};

double TimeOf(const AllReduceTree& op, TensorView partials, Communicator& group,
              Communicator& meeting) {
  Stream stream;
  const auto size = static_cast<std::size_t>(group.size());
  const std::vector<std::int64_t> none(size, 0);
  // As a product leaves them: in this core's cache, and in no other.
  std::fill_n(partials.data<float>(), partials.shape().elements(), 1.0f);
  meeting.AllGatherRows(op.out, op.out, none, stream);
  const auto start = Clock::now();
  Run(op, group, stream);
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// For each call the longest of all ranks.
void TakeSlowest(Microseconds& times, Communicator& group) {
  Stream stream;
  const auto calls = static_cast<std::int64_t>(times.size());
  Microseconds all(times.size() * static_cast<std::size_t>(group.size()));
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(group.size()), 1);
  group.AllGatherRows(
      TensorView(reinterpret_cast<std::byte*>(all.data()), DType::kF64, {group.size(), calls}),
      ConstTensorView(reinterpret_cast<const std::byte*>(times.data()), DType::kF64, {1, calls}),
      rows, stream);
  for (std::size_t i = 0; i < all.size(); ++i) {
    times[i % times.size()] = std::max(times[i % times.size()], all[i]);
  }
}

double Quantile(Microseconds& times, double part) {
  const auto place =
      times.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(times.size() - 1));
  std::nth_element(times.begin(), place, times.end());
  return *place;
}

void Compare(const Case& c, Communicator& shared_memory, Communicator& mpi) {
  const Operands operands(c, shared_memory);
  Communicator* const ways[] = {&shared_memory, &mpi};
  Microseconds times[2];
  constexpr int kWarmUp = 10;
  for (int call = -kWarmUp; call < c.calls; ++call) {
    for (int way = 0; way < 2; ++way) {
      const double time = TimeOf(operands.op(), operands.partials(), *ways[way], shared_memory);
      if (call >= 0) times[way].push_back(time);
    }
  }
  const double bytes = static_cast<double>(c.rows * c.n * SizeOf(DType::kF32));
  if (shared_memory.rank() == 0) {
    std::printf("%4ld × %-5ld", static_cast<long>(c.rows), static_cast<long>(c.n));
  }
  for (Microseconds& of_way : times) {
    TakeSlowest(of_way, shared_memory);
    const double median = Quantile(of_way, 0.5);
    if (shared_memory.rank() != 0) continue;
    std::printf(" |%9.2f%9.2f%8.2f", median, Quantile(of_way, 0.99), bytes / median / 1e3);
  }
  if (shared_memory.rank() == 0) std::printf("\n");
}

void Main() {
  MpiSession session;
  const std::unique_ptr<Communicator> mpi = session.World();
  const std::unique_ptr<Communicator> shared_memory = OverSharedMemory(session.World(), {});
  if (mpi->rank() == 0) {
    std::printf(
        "%d ranks    |           shared memory  |                     MPI\n"
        "rows × f32  |   p50 µs   p99 µs   GB/s |   p50 µs   p99 µs   GB/s\n",
        mpi->size());
  }
  for (const Case& c : kCases) Compare(c, *shared_memory, *mpi);
}

}  // namespace
}  // namespace jubal

int main() { jubal::Main(); }

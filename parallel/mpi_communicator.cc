#include "parallel/mpi_communicator.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "kernels/check.h"
#include "parallel/local_communicator.h"
#include "parallel/row_transfer.h"

namespace jubal {
namespace {

// A count in MPI is an int, and libraries have had bugs near its limit: longer messages go in
// pieces. Messages between two ranks of a group stay in order, so the pieces need no numbers.
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 30;
constexpr int kTag = 0;

// After a failure finalising would wait for ranks that are gone.
bool job_failed = false;

void Must(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  job_failed = true;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw CommunicationError(std::string(call) + ": " +
                           std::string(text.data(), static_cast<std::size_t>(length)));
}

/// What to do between two looks at something awaited. MPI's own waits spin for ever: with more
/// ranks than cores a spinning rank keeps the one it waits for from running.
class Pause {
 public:
  enum class Patience { kBrisk, kIdle };
  explicit Pause(Patience patience) : patience_(patience) {}

  void operator()() {
    if (looks_ < kSpins) {
      ++looks_;
      return;
    }
    if (patience_ == Patience::kBrisk) {
      sched_yield();
      return;
    }
    const auto now = Clock::now();
    if (begin_ == Clock::time_point{}) begin_ = now;
    const Clock::duration waited = now - begin_;
    if (waited < kYieldFor) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(std::min<Clock::duration>(waited / 16, kLongestSleep));
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kSpins = 200;
  static constexpr std::chrono::milliseconds kYieldFor{1};
  static constexpr std::chrono::milliseconds kLongestSleep{20};

  Patience patience_;
  int looks_ = 0;
  Clock::time_point begin_;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(MPI_Comm comm) : comm_(comm) {
    Must(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    Must(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    Must(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    requests_.reserve(2 * static_cast<std::size_t>(size_));
    statuses_.reserve(2 * static_cast<std::size_t>(size_));
  }
  // comm_ is not freed: the standard makes MPI_Comm_free a collective call, and a destructor must
  // not wait for others. Groups live as long as the job; MPI_Finalize releases them.

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& /*stream*/) override {
    const std::int64_t row_bytes = CheckAllGatherRows(*this, gathered, mine, rows);
    const std::int64_t my_bytes = rows[Index(rank_)] * row_bytes;
    std::byte* place = gathered.raw();
    std::byte* my_place = nullptr;
    for (int r = 0; r < size_; ++r) {
      const std::int64_t bytes = rows[Index(r)] * row_bytes;
      if (r == rank_) {
        my_place = place;
      } else {
        Receive(place, bytes, r);
      }
      place += bytes;
    }
    // Each rank begins with its right-hand neighbour, so that nobody is everybody's first.
    for (int i = 1; i < size_; ++i) Send(mine.raw(), my_bytes, (rank_ + i) % size_);
    CopyBytes(my_place, mine.raw(), my_bytes);
    Complete(Pause::Patience::kBrisk);
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& /*stream*/) override {
    const std::int64_t row_bytes = CheckAllToAllRows(*this, recv, recv_rows, send, send_rows);
    std::byte* recv_place = recv.raw();
    std::byte* my_place = nullptr;
    for (int r = 0; r < size_; ++r) {
      const std::int64_t bytes = recv_rows[Index(r)] * row_bytes;
      if (r == rank_) {
        my_place = recv_place;
      } else {
        Receive(recv_place, bytes, r);
      }
      recv_place += bytes;
    }
    const std::byte* send_place = send.raw();
    for (int r = 0; r < size_; ++r) {
      const std::int64_t bytes = send_rows[Index(r)] * row_bytes;
      if (r == rank_) {
        CopyBytes(my_place, send_place, bytes);
      } else {
        Send(send_place, bytes, r);
      }
      send_place += bytes;
    }
    Complete(Pause::Patience::kBrisk);
  }

  void Broadcast(std::vector<std::byte>& message, int root) override {
    CHECK(0 <= root && root < size_);
    auto bytes = static_cast<std::int64_t>(message.size());
    std::byte* const length = reinterpret_cast<std::byte*>(&bytes);
    if (rank_ == root) {
      for (int i = 1; i < size_; ++i) {
        const int r = (root + i) % size_;
        Send(length, sizeof(bytes), r);
        Send(message.data(), bytes, r);
      }
      Complete(Pause::Patience::kIdle);
    } else {
      Receive(length, sizeof(bytes), root);
      Complete(Pause::Patience::kIdle);
      message.resize(static_cast<std::size_t>(bytes));
      Receive(message.data(), bytes, root);
      Complete(Pause::Patience::kBrisk);
    }
  }

  void Barrier() override {
    requests_.emplace_back();
    Must(MPI_Ibarrier(comm_, &requests_.back()), "MPI_Ibarrier");
    Complete(Pause::Patience::kIdle);
  }

  std::unique_ptr<Communicator> Split(int color) override {
    CHECK_GE(color, 0);
    MPI_Comm part = MPI_COMM_NULL;
    Must(MPI_Comm_split(comm_, color, rank_, &part), "MPI_Comm_split");
    return Wrap(part);
  }

  std::unique_ptr<Communicator> SplitByNode() override {
    MPI_Comm part = MPI_COMM_NULL;
    Must(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part),
         "MPI_Comm_split_type");
    return Wrap(part);
  }

  /// A group of one needs no MPI.
  static std::unique_ptr<Communicator> Wrap(MPI_Comm comm) {
    auto group = std::make_unique<MpiCommunicator>(comm);
    if (group->size() == 1) return std::move(MakeLocalWorld(1).front());
    return group;
  }

 private:
  static std::size_t Index(int rank) { return static_cast<std::size_t>(rank); }

  void Receive(std::byte* place, std::int64_t bytes, int source) {
    for (std::int64_t begin = 0; begin < bytes; begin += kPieceBytes) {
      const auto count = static_cast<int>(std::min(bytes - begin, kPieceBytes));
      requests_.emplace_back();
      Must(MPI_Irecv(place + begin, count, MPI_BYTE, source, kTag, comm_, &requests_.back()),
           "MPI_Irecv");
    }
  }

  void Send(const std::byte* place, std::int64_t bytes, int destination) {
    for (std::int64_t begin = 0; begin < bytes; begin += kPieceBytes) {
      const auto count = static_cast<int>(std::min(bytes - begin, kPieceBytes));
      requests_.emplace_back();
      Must(MPI_Isend(place + begin, count, MPI_BYTE, destination, kTag, comm_, &requests_.back()),
           "MPI_Isend");
    }
  }

  /// Waits for everything that was posted since the last time.
  void Complete(Pause::Patience patience) {
    statuses_.resize(requests_.size());
    Pause pause(patience);
    while (true) {
      int done = 0;
      const int code = MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                                   statuses_.data());
      if (code == MPI_ERR_IN_STATUS) {
        for (const MPI_Status& status : statuses_) {
          if (status.MPI_ERROR != MPI_ERR_PENDING) Must(status.MPI_ERROR, "MPI_Testall");
        }
      }
      Must(code, "MPI_Testall");
      if (done != 0) break;
      pause();
    }
    requests_.clear();
  }

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 0;
  std::vector<MPI_Request> requests_;  // of the call in progress
  std::vector<MPI_Status> statuses_;
};

}  // namespace

MpiSession::MpiSession() {
  // Open MPI hands messages of more than 4 KB to the receiver by a system call; a few activations
  // are cheaper copied through shared memory (24 KB between two ranks: 5.1 µs, then 2.9 µs). What
  // the user sets, stays.
  setenv("OMPI_MCA_btl_vader_eager_limit", "65536", /*overwrite=*/0);
  int provided = MPI_THREAD_SINGLE;
  Must(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw CommunicationError("this MPI library does not let other threads exist beside its own");
  }
}

MpiSession::~MpiSession() {
  // Finalising waits for all ranks. A rank that unwinds leaves at once: the launcher sees a process
  // that ended without finalising and ends the others.
  if (!job_failed && std::uncaught_exceptions() == 0) MPI_Finalize();
}

bool MpiSession::Launched() {
  // mpirun of Open MPI; PMIx, PMI-1 and PMI-2, which srun and Hydra speak. SLURM_PROCID is no sign:
  // a batch script has it, too.
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr ||
         std::getenv("PMI_RANK") != nullptr;
}

std::unique_ptr<Communicator> MpiSession::World() { return MpiCommunicator::Wrap(MPI_COMM_WORLD); }

void MpiSession::Progress() {
  // Nobody sends here, so there is nothing to find; looking is what moves messages.
  int found = 0;
  Must(MPI_Iprobe(MPI_ANY_SOURCE, kTag, MPI_COMM_SELF, &found, MPI_STATUS_IGNORE), "MPI_Iprobe");
}

void MpiSession::Abort(int status) {
  job_failed = true;
  int running = 0;
  MPI_Initialized(&running);
  if (running != 0) MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace jubal

#include "tests/parallel/fake_nccl.h"

#include <mpi.h>
#include <nccl.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_gpu/emulated_gpu.h"

/// Kept until the process ends: whoever uses one after its end is told so.
struct ncclComm {
  int rank = 0;
  std::vector<int> members;  // as ranks of the job
  int tag = 0;               // of its messages
  int children = 0;
  ncclResult_t state = ncclInProgress;
  int polls_left = 0;
  std::function<bool()> job;     // what the call in progress waits for, if anything
  std::function<void()> launch;  // what it does last
  std::atomic<bool> aborted = false;
};

namespace jubal {
namespace {

MPI_Comm messages = MPI_COMM_NULL;
std::vector<std::unique_ptr<ncclComm>> communicators;
std::int64_t identities = 0;
std::string last_error;

ncclResult_t Error(ncclResult_t result, const char* text) {
  last_error = text;
  return result;
}

/// Messages under way. None reads or writes the memory of whoever sends or receives.
class Transfers {
 public:
  void Send(const void* from, std::size_t bytes, int to, int tag) {
    Piece& piece = *pieces_.emplace_back(std::make_unique<Piece>());
    piece.bytes.resize(bytes);
    std::memcpy(piece.bytes.data(), from, bytes);
    CHECK(MPI_Isend(piece.bytes.data(), static_cast<int>(bytes), MPI_BYTE, to, tag, messages,
                    &piece.request) == MPI_SUCCESS);
  }
  void Receive(void* to, std::size_t bytes, int from, int tag) {
    Piece& piece = *pieces_.emplace_back(std::make_unique<Piece>());
    piece.bytes.resize(bytes);
    piece.place = to;
    CHECK(MPI_Irecv(piece.bytes.data(), static_cast<int>(bytes), MPI_BYTE, from, tag, messages,
                    &piece.request) == MPI_SUCCESS);
  }
  /// True when all have arrived, and are where they belong.
  bool Done() {
    for (const auto& piece : pieces_) {
      if (piece->arrived) continue;
      int done = 0;
      MPI_Status status;
      CHECK(MPI_Test(&piece->request, &done, &status) == MPI_SUCCESS);
      if (done == 0) return false;
      piece->arrived = true;
      if (piece->place == nullptr) continue;
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      CHECK_EQ(static_cast<std::size_t>(bytes), piece->bytes.size());
    }
    for (const auto& piece : pieces_) {
      if (piece->place != nullptr) {
        std::memcpy(piece->place, piece->bytes.data(), piece->bytes.size());
      }
    }
    return true;
  }
  void GiveUp() {
    for (const auto& piece : pieces_) {
      if (piece->arrived) continue;
      MPI_Cancel(&piece->request);
      MPI_Request_free(&piece->request);
    }
  }

 private:
  struct Piece {
    std::vector<std::byte> bytes;
    void* place = nullptr;
    MPI_Request request = MPI_REQUEST_NULL;
    bool arrived = false;
  };
  std::vector<std::unique_ptr<Piece>> pieces_;
};

/// A send, or a receive, of a member of the communicator.
struct Transfer {
  const void* from = nullptr;
  void* to = nullptr;
  std::size_t bytes = 0;
  int peer = 0;
};

struct Group {
  int depth = 0;
  ncclComm* communicator = nullptr;
  void* stream = nullptr;
  std::vector<Transfer> transfers;
};
Group group;

/// What the stream does.
void Enqueue(ncclComm* communicator, void* stream, std::vector<Transfer> transfers) {
  FakeNccl& fake = TheFakeNccl();
  const bool fails = fake.calls_until_error == 0;
  if (fake.calls_until_error >= 0) --fake.calls_until_error;
  EnqueueHostWork(stream, [=]() -> std::function<bool()> {
    if (fails) {
      communicator->state = Error(ncclRemoteError, "a peer hung up");
      return [=] { return communicator->aborted.load(); };
    }
    auto under_way = std::make_shared<Transfers>();
    for (const Transfer& transfer : transfers) {
      const int peer = communicator->members[static_cast<std::size_t>(transfer.peer)];
      if (transfer.peer == communicator->rank) {
        if (transfer.from != transfer.to) {
          std::memcpy(transfer.to, transfer.from, transfer.bytes);
        }
      } else if (transfer.from != nullptr) {
        under_way->Send(transfer.from, transfer.bytes, peer, communicator->tag);
      } else {
        under_way->Receive(transfer.to, transfer.bytes, peer, communicator->tag);
      }
    }
    return [=] {
      if (!communicator->aborted) return under_way->Done();
      under_way->GiveUp();
      return true;
    };
  });
}

ncclResult_t CheckReady(const ncclComm* communicator) {
  if (communicator == nullptr || communicator->aborted) {
    return Error(ncclInvalidArgument, "no communicator");
  }
  if (communicator->state == ncclInProgress) {
    return Error(ncclInvalidArgument, "the call before has not ended");
  }
  return communicator->state;
}

ncclResult_t Start(ncclComm* communicator, std::function<bool()> job,
                   std::function<void()> launch) {
  communicator->state = ncclInProgress;
  communicator->polls_left = TheFakeNccl().polls;
  communicator->job = std::move(job);
  communicator->launch = std::move(launch);
  return ncclInProgress;
}

ncclResult_t Launch(ncclComm* communicator, void* stream, std::vector<Transfer> transfers) {
  if (TheFakeNccl().refuses_calls) return Error(ncclSystemError, "no such device");
  return Start(communicator, {}, [=] { Enqueue(communicator, stream, transfers); });
}

ncclResult_t AddToGroup(ncclComm* communicator, void* stream, const Transfer& transfer) {
  CHECK(group.depth > 0);  // alone, a send waits for its receive
  const ncclResult_t ready = CheckReady(communicator);
  if (ready != ncclSuccess) return ready;
  CHECK(group.communicator == nullptr || group.communicator == communicator);
  CHECK(transfer.peer != communicator->rank);
  CHECK(transfer.bytes > 0);
  group.communicator = communicator;
  group.stream = stream;
  group.transfers.push_back(transfer);
  return ncclSuccess;
}

ncclComm* NewCommunicator(std::vector<int> members, int rank, int tag) {
  ++TheFakeNccl().made;
  ncclComm* const made = communicators.emplace_back(std::make_unique<ncclComm>()).get();
  made->members = std::move(members);
  made->rank = rank;
  made->tag = tag;
  return made;
}

/// Every member's value, when all have arrived.
template <class T>
std::function<bool()> Meet(const ncclComm* communicator, const T& mine,
                           std::shared_ptr<std::vector<T>> values) {
  auto under_way = std::make_shared<Transfers>();
  values->assign(communicator->members.size(), mine);
  for (std::size_t r = 0; r < communicator->members.size(); ++r) {
    if (static_cast<int>(r) == communicator->rank) continue;
    under_way->Send(&mine, sizeof(T), communicator->members[r], communicator->tag);
    under_way->Receive(&(*values)[r], sizeof(T), communicator->members[r], communicator->tag);
  }
  return [under_way, values, done = false]() mutable {
    if (!TheFakeNccl().connects) return false;
    if (!done) done = under_way->Done();
    return done;
  };
}

}  // namespace

FakeNccl& TheFakeNccl() {
  static FakeNccl fake;
  return fake;
}

void StartFakeNccl() { CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &messages) == MPI_SUCCESS); }

}  // namespace jubal

// NOLINTBEGIN(readability-identifier-naming): NCCL's names.

ncclResult_t ncclGetVersion(int* version) {
  *version = jubal::TheFakeNccl().version;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "another error";
  }
}

const char* ncclGetLastError(ncclComm_t) { return jubal::last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::int64_t number = ++jubal::identities;
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  CHECK_EQ(config->blocking, 0);
  std::int64_t number = 0;
  std::memcpy(&number, id.internal, sizeof(number));
  std::vector<int> members;
  for (int r = 0; r < size; ++r) members.push_back(r);
  *made = jubal::NewCommunicator(members, rank, static_cast<int>(number) << 12);
  auto all = std::make_shared<std::vector<std::int64_t>>();
  return jubal::Start(*made, jubal::Meet(*made, number, all), [all, number] {
    for (const std::int64_t other : *all) CHECK_EQ(other, number);
  });
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t* made,
                           ncclConfig_t* config) {
  CHECK_EQ(config->blocking, 0);
  const ncclResult_t ready = jubal::CheckReady(parent);
  if (ready != ncclSuccess) return ready;
  CHECK_EQ(key, parent->rank);
  *made = nullptr;
  auto colors = std::make_shared<std::vector<int>>();
  const int tag = (parent->tag * 37 + ++parent->children) % (1 << 20);
  return jubal::Start(parent, jubal::Meet(parent, color, colors), [=] {
    if (color == NCCL_SPLIT_NOCOLOR) return;
    std::vector<int> members;
    int rank = 0;
    for (std::size_t r = 0; r < colors->size(); ++r) {
      if (static_cast<int>(r) == parent->rank) rank = static_cast<int>(members.size());
      if ((*colors)[r] == color) members.push_back(parent->members[r]);
    }
    *made = jubal::NewCommunicator(members, rank, tag);
    jubal::Start(*made, {}, {});
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  if (communicator == nullptr || communicator->aborted) {
    return jubal::Error(ncclInvalidArgument, "no communicator");
  }
  if (communicator->state == ncclInProgress) {
    if (communicator->polls_left > 0) {
      --communicator->polls_left;
    } else if (!communicator->job || communicator->job()) {
      communicator->state = ncclSuccess;
      if (communicator->launch) std::exchange(communicator->launch, {})();
    }
  }
  *error = communicator->state;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  CHECK(communicator != nullptr && !communicator->aborted);
  communicator->aborted = true;
  ++jubal::TheFakeNccl().aborted;
  while (jubal::TheFakeNccl().keeps_aborts) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  CHECK(type == ncclUint8 && jubal::group.depth == 0);
  const ncclResult_t ready = jubal::CheckReady(communicator);
  if (ready != ncclSuccess) return ready;
  std::vector<jubal::Transfer> transfers;
  for (int r = 0; r < static_cast<int>(communicator->members.size()); ++r) {
    void* const place = static_cast<std::byte*>(to) + static_cast<std::size_t>(r) * count;
    if (r == communicator->rank) {
      transfers.push_back({.from = from, .to = place, .bytes = count, .peer = r});
    } else {
      transfers.push_back({.from = from, .bytes = count, .peer = r});
      transfers.push_back({.to = place, .bytes = count, .peer = r});
    }
  }
  return jubal::Launch(communicator, stream, std::move(transfers));
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  CHECK(type == ncclUint8);
  return jubal::AddToGroup(communicator, stream, {.from = from, .bytes = count, .peer = peer});
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  CHECK(type == ncclUint8);
  return jubal::AddToGroup(communicator, stream, {.to = to, .bytes = count, .peer = peer});
}

ncclResult_t ncclGroupStart() {
  ++jubal::group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  CHECK(jubal::group.depth > 0);
  if (--jubal::group.depth > 0) return ncclSuccess;
  const jubal::Group ended = std::exchange(jubal::group, {});
  if (ended.communicator == nullptr) return ncclSuccess;
  return jubal::Launch(ended.communicator, ended.stream, ended.transfers);
}

// NOLINTEND(readability-identifier-naming)

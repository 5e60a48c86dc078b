#include "parallel/shared_memory_communicator.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernels/check.h"
#include "parallel/gather_values.h"
#include "parallel/row_transfer.h"
#include "parallel/shared_memory.h"

namespace jubal {
namespace {

// A call is one or more rounds. In round k every rank writes into slot k mod 2 of its segment where
// its rows are, publishes k there, and takes rows from each of the others when that has published
// k. Rows in an arena are read there; the others are copied into the slot, a fragment per round.
//
// Who has published k + 1 has left round k, and in round k + 2, when a slot is written again, all
// have been seen to publish k + 1. So no rank is ever two rounds ahead of another, a slot holds
// either its last round or the present one, and since rounds are counted over the life of a group
// no call can be taken for another. Only rows in an arena, which their owner may overwrite as soon
// as its call returns, need a second meeting: every rank also publishes the last round that it has
// left.

constexpr std::int64_t kFragmentBytes = std::int64_t{64} << 10;  // stays in a core's cache
constexpr std::int64_t kLinePair = 128;  // neighbouring cache lines are fetched in pairs
constexpr int kMostRanks = 256;  // of one group; more leave too little of a fragment to each
constexpr int kSpins = 200;      // looks before yielding: some microseconds

std::int64_t RoundUp(std::int64_t bytes, std::int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);

/// A number in shared memory that one rank raises and the others look at.
struct Counter {
  std::uint64_t value = 0;

  std::uint64_t Look() const {  // sees what was written before it was raised
    return std::atomic_ref(const_cast<std::uint64_t&>(value)).load(std::memory_order_acquire);
  }
  void RaiseTo(std::uint64_t next) {
    std::atomic_ref(value).store(next, std::memory_order_release);
  }
};

/// Rows for one rank: from byte `begin` of the fragment or the arena.
struct Piece {
  std::int64_t begin = 0;
  std::int64_t bytes = 0;
};

constexpr std::int32_t kInFragment = -1;

struct SlotHead {
  Counter published;
  std::int32_t place = kInFragment;  // or which of the host's arenas
  std::int32_t more = 0;             // whether the rank has rows for another round
};

std::int64_t HeadBytes(int size) {
  const std::size_t bytes = sizeof(SlotHead) + static_cast<std::size_t>(size) * sizeof(Piece);
  return RoundUp(static_cast<std::int64_t>(bytes), kLinePair);
}

std::int64_t SlotBytes(int size) { return HeadBytes(size) + kFragmentBytes; }

/// A slot of a segment: a head, a piece for each rank, a fragment. Byte is const for who reads.
template <class Byte>
class Slot {
 public:
  Slot(Byte* segment, std::uint64_t round, int size)
      : memory_(segment + kLinePair + static_cast<std::int64_t>(round % 2) * SlotBytes(size)),
        head_bytes_(HeadBytes(size)) {}

  auto& head() const { return *At<SlotHead>(0); }
  auto& piece(int rank) const { return At<Piece>(sizeof(SlotHead))[rank]; }
  Byte* fragment() const { return memory_ + head_bytes_; }

 private:
  template <class T>
  auto* At(std::size_t offset) const {
    using Part = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return reinterpret_cast<Part*>(memory_ + offset);
  }

  Byte* memory_;
  std::int64_t head_bytes_;
};

/// A segment begins with the last round that its rank has left.
template <class Byte>
auto& LeftOf(Byte* segment) {
  return *reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const Counter, Counter>*>(
      segment);
}

/// Where a rank sits.
struct HostSeat {
  std::int32_t host = 0;  // the first world rank on its host
  std::int32_t rank = 0;  // among those on its host
};

/// What the groups of one rank have in common.
struct Host {
  /// Memory from NewArena, by rank on the host.
  struct SharedArena {
    SharedMemory memory;
    std::int64_t bytes = 0;  // of this rank's
  };

  HostSeat seat;
  int size = 0;
  SharedMemoryHooks hooks;
  std::vector<SharedArena> arenas{};

  /// The arena that has these bytes of this rank, or kInFragment.
  std::int32_t ArenaWith(const std::byte* begin, std::int64_t bytes) const {
    for (std::size_t i = 0; i < arenas.size(); ++i) {
      const std::byte* const first = arenas[i].memory.mine.get();
      if (begin >= first && begin + bytes <= first + arenas[i].bytes) {
        return static_cast<std::int32_t>(i);
      }
    }
    return kInFragment;
  }
};

class SharedMemoryCommunicator final : public Communicator {
 public:
  /// `group` over shared memory if its ranks are on one host and can share it.
  static std::unique_ptr<Communicator> Over(std::unique_ptr<Communicator> group,
                                            std::shared_ptr<Host> host) {
    if (group->size() == 1) return group;
    return std::make_unique<SharedMemoryCommunicator>(std::move(group), std::move(host));
  }

  SharedMemoryCommunicator(std::unique_ptr<Communicator> group, std::shared_ptr<Host> host)
      : group_(std::move(group)),
        host_(std::move(host)),
        rank_(group_->rank()),
        size_(group_->size()),
        seats_(GatherValues(*group_, host_->seat)),
        transfers_(static_cast<std::size_t>(size_)),
        visited_(static_cast<std::size_t>(size_)) {
    const bool on_one_host = std::all_of(seats_.begin(), seats_.end(), [&](const HostSeat& seat) {
      return seat.host == host_->seat.host;
    });
    if (on_one_host && size_ <= kMostRanks) segments_ = Share(SegmentBytes(size_));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    if (!segments_.mine) return group_->AllGatherRows(gathered, mine, rows, stream);
    BeginAllGather(gathered, mine, rows);
    Exchange();
  }

  void VisitRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                 const RowVisitor& visit, Stream& stream) override {
    if (!segments_.mine) return group_->VisitRows(gathered, mine, rows, visit, stream);
    BeginAllGather(gathered, mine, rows);
    bool more = Publish();
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) more = Await(r).head().more != 0 || more;
    }
    if (more) {  // some rows come in several rounds: no view shows them all
      Take();
      Leave();
      Exchange();
      visit(ViewsOfRanks(gathered, rows));
      return;
    }
    Shape shape = mine.shape();
    for (int r = 0; r < size_; ++r) {
      const std::byte* place = mine.raw();
      if (r != rank_) {
        const Slot<const std::byte> slot = Await(r);
        Check(r, slot.piece(rank_).bytes == transfers_[Index(r)].received);
        place = RowsIn(slot, r);
      }
      shape[0] = rows[Index(r)];
      visited_[Index(r)] = ConstTensorView(place, mine.dtype(), shape);
    }
    visit(visited_);
    Leave();
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    if (!segments_.mine) return group_->AllToAllRows(recv, recv_rows, send, send_rows, stream);
    const std::int64_t row_bytes = CheckAllToAllRows(*this, recv, recv_rows, send, send_rows);
    to_all_ = false;
    place_ = host_->ArenaWith(send.raw(), SumOf(send_rows) * row_bytes);
    // A round takes an equal part of what goes to each rank, so that all have something to do.
    const std::int64_t others = (SumOf(send_rows) - send_rows[Index(rank_)]) * row_bytes;
    const std::int64_t room = kFragmentBytes - size_ * kLinePair;  // less what rounding up takes
    const std::int64_t rounds =
        place_ == kInFragment ? std::max<std::int64_t>(1, (others + room - 1) / room) : 1;
    const std::byte* source = send.raw();
    std::byte* destination = recv.raw();
    for (int r = 0; r < size_; ++r) {
      const std::int64_t sent = send_rows[Index(r)] * row_bytes;
      const std::int64_t received = recv_rows[Index(r)] * row_bytes;
      transfers_[Index(r)] = {.source = source,
                              .sent = sent,
                              .share = RoundUp((sent + rounds - 1) / rounds, kLinePair),
                              .destination = destination,
                              .received = received};
      source += sent;
      destination += received;
    }
    Exchange();
  }

  Arena NewArena(std::int64_t bytes) override {
    CHECK(!segments_.mine || size_ == host_->size);
    if (!segments_.mine) return group_->NewArena(bytes);
    Host::SharedArena arena{.memory = Share(ArenaBytes(bytes)), .bytes = ArenaBytes(bytes)};
    if (!arena.memory.mine) return group_->NewArena(bytes);
    host_->arenas.push_back(std::move(arena));
    return Arena(host_->arenas.back().memory.mine, host_->arenas.back().bytes);
  }

  void Broadcast(std::vector<std::byte>& message, int root) override {
    group_->Broadcast(message, root);
  }
  void Barrier() override { group_->Barrier(); }

  std::unique_ptr<Communicator> Split(int color) override {
    return Over(group_->Split(color), host_);
  }
  std::unique_ptr<Communicator> SplitByNode() override {
    return Over(group_->SplitByNode(), host_);
  }

 private:
  /// What goes to one rank in a call, and what comes from it.
  struct Transfer {
    const std::byte* source = nullptr;
    std::int64_t sent = 0;   // bytes
    std::int64_t share = 0;  // of `sent`, in one round
    std::byte* destination = nullptr;
    std::int64_t received = 0;
    std::int64_t gone = 0;  // of `sent`, so far
    std::int64_t here = 0;  // of `received`, so far
  };

  static std::size_t Index(int rank) { return static_cast<std::size_t>(rank); }

  void BeginAllGather(const TensorView& gathered, const ConstTensorView& mine,
                      std::span<const std::int64_t> rows) {
    const std::int64_t row_bytes = CheckAllGatherRows(*this, gathered, mine, rows);
    const std::int64_t sent = rows[Index(rank_)] * row_bytes;
    to_all_ = true;
    place_ = host_->ArenaWith(mine.raw(), sent);
    std::byte* destination = gathered.raw();
    for (int r = 0; r < size_; ++r) {
      const std::int64_t received = rows[Index(r)] * row_bytes;
      transfers_[Index(r)] = {.source = mine.raw(),
                              .sent = sent,
                              .share = place_ == kInFragment ? kFragmentBytes : sent,
                              .destination = destination,
                              .received = received};
      destination += received;
    }
  }

  /// Carries out the transfers, in as many rounds as the rank needs that needs most.
  void Exchange() {
    for (bool more = true; more;) {
      more = Publish();
      more = Take() || more;
      Leave();
    }
    for (int r = 0; r < size_; ++r) {
      Check(r, transfers_[Index(r)].here == transfers_[Index(r)].received);
    }
  }

  /// Begins a round: tells the others where their rows are. Returns whether there will be more.
  bool Publish() {
    const Slot<std::byte> slot(segments_.mine.get(), ++round_, size_);
    const bool in_arena = place_ != kInFragment;
    std::int64_t used = 0;
    bool more = false;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const Transfer& transfer = transfers_[Index(r)];
      const std::int64_t bytes = std::min(transfer.share, transfer.sent - transfer.gone);
      const std::int64_t in_its_arena =
          in_arena ? transfer.source + transfer.gone - ArenaOf(rank_, place_) : 0;
      slot.piece(r) = {.begin = in_arena ? in_its_arena : used, .bytes = bytes};
      if (!to_all_) used += transfer.share;
      more = more || transfer.gone + bytes < transfer.sent;
    }
    slot.head().place = place_;
    slot.head().more = more ? 1 : 0;
    bool copied = in_arena;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      Transfer& transfer = transfers_[Index(r)];
      const Piece& piece = slot.piece(r);
      if (!copied) {
        CopyBytes(slot.fragment() + piece.begin, transfer.source + transfer.gone, piece.bytes);
      }
      copied = copied || to_all_;
      transfer.gone += piece.bytes;
    }
    slot.head().published.RaiseTo(round_);
    return more;
  }

  /// Copies the round's rows to where they go. Returns whether other ranks have more.
  bool Take() {
    Transfer& own = transfers_[Index(rank_)];
    CopyBytes(own.destination + own.here, own.source + own.here, own.received - own.here);
    own.here = own.received;
    bool more = false;
    for (int i = 1; i < size_; ++i) {
      // Each begins with its right-hand neighbour, so that nobody's memory is everybody's first.
      const int r = (rank_ + i) % size_;
      const Slot<const std::byte> slot = Await(r);
      const std::int64_t bytes = slot.piece(rank_).bytes;
      Transfer& transfer = transfers_[Index(r)];
      Check(r, bytes <= transfer.received - transfer.here);
      CopyBytes(transfer.destination + transfer.here, RowsIn(slot, r), bytes);
      transfer.here += bytes;
      more = more || slot.head().more != 0;
    }
    return more;
  }

  /// Ends a round. Rows in an arena stay as they are until all have taken them.
  void Leave() {
    LeftOf(segments_.mine.get()).RaiseTo(round_);
    if (place_ == kInFragment) return;
    const Slot<std::byte> slot(segments_.mine.get(), round_, size_);
    for (int r = 0; r < size_; ++r) {
      if (r != rank_ && slot.piece(r).bytes > 0) WaitFor(LeftOf(segments_.of_rank[Index(r)].get()));
    }
  }

  /// The rank's slot, when it has come to this round.
  Slot<const std::byte> Await(int rank) const {
    const Slot<const std::byte> slot(segments_.of_rank[Index(rank)].get(), round_, size_);
    WaitFor(slot.head().published);
    return slot;
  }

  void WaitFor(const Counter& counter) const {
    for (int looks = 0; counter.Look() < round_; ++looks) {
      if (looks < kSpins) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        if (host_->hooks.while_waiting) host_->hooks.while_waiting();
        sched_yield();
      }
    }
  }

  /// What another rank's slot has for this one.
  const std::byte* RowsIn(const Slot<const std::byte>& slot, int rank) const {
    const std::int64_t begin = slot.piece(rank_).begin;
    const std::int32_t place = slot.head().place;
    return begin + (place == kInFragment ? slot.fragment() : ArenaOf(rank, place));
  }

  const std::byte* ArenaOf(int rank, std::int32_t arena) const {
    return host_->arenas[Index(arena)].memory.of_rank[Index(seats_[Index(rank)].rank)].get();
  }

  void Check(int rank, bool as_expected) const {
    if (as_expected) return;
    throw CommunicationError(fmt::format(
        "rank {} of a group of {} sent other rows than were expected of it", rank, size_));
  }

  SharedMemory Share(std::int64_t bytes) {
    SharedMemory memory = ShareMemory(*group_, bytes);
    if (!memory.mine && rank_ == 0 && host_->hooks.on_failure) {
      host_->hooks.on_failure(memory.failure);
    }
    return memory;
  }

  std::unique_ptr<Communicator> group_;
  std::shared_ptr<Host> host_;
  int rank_;
  int size_;
  std::vector<HostSeat> seats_;  // by rank
  SharedMemory segments_;        // not there: everything is left to group_
  std::uint64_t round_ = 0;

  // Of the call in progress.
  bool to_all_ = false;               // whether all ranks get the same rows
  std::int32_t place_ = kInFragment;  // where this rank's rows are
  std::vector<Transfer> transfers_;   // by rank
  std::vector<ConstTensorView> visited_;
};

}  // namespace

std::int64_t SegmentBytes(int size) { return kLinePair + 2 * SlotBytes(size); }

std::unique_ptr<Communicator> OverSharedMemory(std::unique_ptr<Communicator> world,
                                               SharedMemoryHooks hooks) {
  if (world->size() == 1) return world;
  const std::unique_ptr<Communicator> node = world->SplitByNode();
  const std::int32_t rank = world->rank();
  const HostSeat seat{.host = GatherValues(*node, rank).front(), .rank = node->rank()};
  auto host =
      std::make_shared<Host>(Host{.seat = seat, .size = node->size(), .hooks = std::move(hooks)});
  return SharedMemoryCommunicator::Over(std::move(world), std::move(host));
}

}  // namespace jubal

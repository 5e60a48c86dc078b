#include "parallel/local_communicator.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "kernels/check.h"
#include "parallel/row_transfer.h"

namespace jubal {
namespace {

class LocalGroup;

/// What one member shows the others between two meetings: they read its memory where it lies.
struct Offer {
  const std::byte* data = nullptr;
  std::int64_t row_bytes = 0;
  std::span<const std::int64_t> rows{};  // AllGatherRows: of all members; AllToAllRows: sent
  std::vector<std::byte>* message = nullptr;
  int color = 0;
  std::shared_ptr<LocalGroup> subgroup{};
};

/// What the members share. A collective is: make an offer, meet, read the others' offers, meet. So
/// no offer changes while somebody may read it.
class LocalGroup {
 public:
  explicit LocalGroup(int size) : offers_(static_cast<std::size_t>(size)) {}

  int size() const { return static_cast<int>(offers_.size()); }
  Offer& offer(int rank) { return offers_[static_cast<std::size_t>(rank)]; }

  /// Returns when all members are here. Throws when one has left: it will never come. A member
  /// leaves only outside a collective, so a meeting that was complete stays complete, and nobody
  /// is still reading the memory of one who was told to give up.
  void Meet() {
    std::unique_lock lock(mutex_);
    if (left_) throw CommunicationError("a rank of the group is gone");
    const std::uint64_t meeting = meeting_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++meeting_;
      lock.unlock();
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return meeting_ != meeting || left_; });
    if (meeting_ == meeting) {
      throw CommunicationError("a rank left the group while others waited for it");
    }
  }

  void Leave() {
    {
      const std::lock_guard lock(mutex_);
      left_ = true;
    }
    changed_.notify_all();
  }

 private:
  std::vector<Offer> offers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t meeting_ = 0;  // complete meetings so far
  int arrived_ = 0;            // members at the present one
  bool left_ = false;          // whether any member is gone
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalGroup> group, int rank)
      : group_(std::move(group)), rank_(rank) {}
  ~LocalCommunicator() override { group_->Leave(); }

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& /*stream*/) override {
    const std::int64_t row_bytes = CheckAllGatherRows(*this, gathered, mine, rows);
    Show({.data = mine.raw(), .row_bytes = row_bytes, .rows = rows});
    std::byte* place = gathered.raw();
    for (int r = 0; r < size(); ++r) {
      const Offer& offer = group_->offer(r);
      const std::int64_t bytes = rows[Index(r)] * row_bytes;
      CHECK_EQ(offer.row_bytes, row_bytes);
      CHECK_EQ(offer.rows[Index(r)], rows[Index(r)]);
      CopyBytes(place, offer.data, bytes);
      place += bytes;
    }
    group_->Meet();
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& /*stream*/) override {
    const std::int64_t row_bytes = CheckAllToAllRows(*this, recv, recv_rows, send, send_rows);
    Show({.data = send.raw(), .row_bytes = row_bytes, .rows = send_rows});
    std::byte* place = recv.raw();
    for (int r = 0; r < size(); ++r) {
      const Offer& offer = group_->offer(r);
      const std::int64_t bytes = recv_rows[Index(r)] * row_bytes;
      CHECK_EQ(offer.row_bytes, row_bytes);
      CHECK_EQ(offer.rows[Index(rank_)], recv_rows[Index(r)]);
      CopyBytes(place, offer.data + SumOf(offer.rows.first(Index(rank_))) * row_bytes, bytes);
      place += bytes;
    }
    group_->Meet();
  }

  void Broadcast(std::vector<std::byte>& message, int root) override {
    CHECK(0 <= root && root < size());
    Show({.message = &message});
    if (rank_ != root) message = *group_->offer(root).message;
    group_->Meet();
  }

  void Barrier() override { group_->Meet(); }

  std::unique_ptr<Communicator> Split(int color) override {
    CHECK_GE(color, 0);
    Show({.color = color});
    int first = size();
    int position = 0;
    int members = 0;
    for (int r = 0; r < size(); ++r) {
      if (group_->offer(r).color != color) continue;
      if (members == 0) first = r;
      if (r == rank_) position = members;
      ++members;
    }
    if (rank_ == first) group_->offer(rank_).subgroup = std::make_shared<LocalGroup>(members);
    group_->Meet();
    std::shared_ptr<LocalGroup> subgroup = group_->offer(first).subgroup;
    group_->Meet();
    group_->offer(rank_).subgroup = nullptr;
    if (members == 1) return std::move(MakeLocalWorld(1).front());
    return std::make_unique<LocalCommunicator>(std::move(subgroup), position);
  }

  std::unique_ptr<Communicator> SplitByNode() override { return Split(0); }

 private:
  static std::size_t Index(int rank) { return static_cast<std::size_t>(rank); }

  void Show(Offer offer) {
    group_->offer(rank_) = std::move(offer);
    group_->Meet();
  }

  std::shared_ptr<LocalGroup> group_;
  int rank_;
};

/// A group of one: what it sends, it receives.
class SoleCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    const std::int64_t row_bytes =
        CheckAllGatherRows(*this, gathered, mine, rows, gathered.device());
    CopyBytes(gathered, mine, rows[0] * row_bytes, stream);
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    const std::int64_t row_bytes =
        CheckAllToAllRows(*this, recv, recv_rows, send, send_rows, recv.device());
    CopyBytes(recv, send, recv_rows[0] * row_bytes, stream);
  }

  void Broadcast(std::vector<std::byte>& /*message*/, int root) override { CHECK_EQ(root, 0); }
  void Barrier() override {}

  std::unique_ptr<Communicator> Split(int color) override {
    CHECK_GE(color, 0);
    return std::make_unique<SoleCommunicator>();
  }
  std::unique_ptr<Communicator> SplitByNode() override { return Split(0); }
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalWorld(int size) {
  CHECK_GE(size, 1);
  std::vector<std::unique_ptr<Communicator>> world;
  if (size == 1) {
    world.push_back(std::make_unique<SoleCommunicator>());
    return world;
  }
  const auto group = std::make_shared<LocalGroup>(size);
  for (int r = 0; r < size; ++r) world.push_back(std::make_unique<LocalCommunicator>(group, r));
  return world;
}

}  // namespace jubal

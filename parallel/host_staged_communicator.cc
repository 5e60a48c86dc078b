#include "parallel/host_staged_communicator.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/run.h"
#include "parallel/gather_values.h"
#include "parallel/row_transfer.h"

namespace jubal {
namespace {

/// Pinned memory that the groups of one rank use in turn: a call leaves nothing in it.
struct Staging {
  Staging(Gpu& on, std::int64_t buffer_bytes)
      : gpu(on),
        bytes(buffer_bytes),
        out(on.AllocatePinned(buffer_bytes)),
        in(on.AllocatePinned(buffer_bytes)) {}

  Gpu& gpu;
  const std::int64_t bytes;  // of each
  const std::shared_ptr<std::byte> out;
  const std::shared_ptr<std::byte> in;
};

class HostStagedCommunicator final : public Communicator {
 public:
  HostStagedCommunicator(std::unique_ptr<Communicator> group, std::shared_ptr<Staging> staging)
      : group_(std::move(group)), staging_(std::move(staging)) {
    CHECK_GE(PieceBytes(), 1);
  }

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }

  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    if (size() == 1 || gathered.device() == Device::kCpu) {
      return group_->AllGatherRows(gathered, mine, rows, stream);
    }
    const std::int64_t row_bytes = CheckAllGatherRows(*this, gathered, mine, rows, Device::kCuda);
    const std::int64_t most = *std::max_element(rows.begin(), rows.end()) * row_bytes;
    const std::int64_t own = rows[static_cast<std::size_t>(rank())];
    InPieces(mine, Transfers({&own, 1}, row_bytes), gathered, Transfers(rows, row_bytes), most,
             stream, [&](const Piece& out, const Piece& in) {
               group_->AllGatherRows(in.view, out.view, in.rows, host_);
             });
  }

  void VisitRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                 const RowVisitor& visit, Stream& stream) override {
    if (gathered.device() == Device::kCpu) {
      return group_->VisitRows(gathered, mine, rows, visit, stream);
    }
    Communicator::VisitRows(gathered, mine, rows, visit, stream);
  }

  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    if (size() == 1 || recv.device() == Device::kCpu) {
      return group_->AllToAllRows(recv, recv_rows, send, send_rows, stream);
    }
    const std::int64_t row_bytes =
        CheckAllToAllRows(*this, recv, recv_rows, send, send_rows, Device::kCuda);
    // Only sender and receiver know what goes between them; all go on until the last is done.
    const std::int64_t own = *std::max_element(send_rows.begin(), send_rows.end()) * row_bytes;
    const std::vector<std::int64_t> of_all = GatherValues(*group_, own);
    InPieces(send, Transfers(send_rows, row_bytes), recv, Transfers(recv_rows, row_bytes),
             *std::max_element(of_all.begin(), of_all.end()), stream,
             [&](const Piece& out, const Piece& in) {
               group_->AllToAllRows(in.view, in.rows, out.view, out.rows, host_);
             });
  }

  void Broadcast(std::vector<std::byte>& message, int root) override {
    group_->Broadcast(message, root);
  }
  Arena NewArena(std::int64_t bytes) override { return Arena(staging_->gpu, bytes); }
  void Barrier() override { group_->Barrier(); }

  std::unique_ptr<Communicator> Split(int color) override {
    return std::make_unique<HostStagedCommunicator>(group_->Split(color), staging_);
  }
  std::unique_ptr<Communicator> SplitByNode() override {
    return std::make_unique<HostStagedCommunicator>(group_->SplitByNode(), staging_);
  }

 private:
  /// Bytes of a tensor that go to one rank, or come from it.
  struct Transfer {
    std::int64_t place = 0;
    std::int64_t bytes = 0;
  };
  /// A piece of each transfer, in host memory: rows of one byte.
  struct Piece {
    TensorView view;
    std::vector<std::int64_t> rows{};  // of each rank
  };

  /// One rank's rows after the other's.
  static std::vector<Transfer> Transfers(std::span<const std::int64_t> rows,
                                         std::int64_t row_bytes) {
    std::vector<Transfer> transfers;
    std::int64_t place = 0;
    for (const std::int64_t count : rows) {
      transfers.push_back({.place = place, .bytes = count * row_bytes});
      place += count * row_bytes;
    }
    return transfers;
  }

  /// Of each transfer, what is carried at a time.
  std::int64_t PieceBytes() const { return staging_->bytes / size(); }

  Piece PieceOf(std::span<const Transfer> transfers, std::int64_t begin, std::byte* memory) const {
    Piece piece;
    for (const Transfer& transfer : transfers) {
      piece.rows.push_back(std::clamp<std::int64_t>(transfer.bytes - begin, 0, PieceBytes()));
    }
    piece.view = TensorView(memory, DType::kU8, {SumOf(piece.rows), 1});
    return piece;
  }

  /// Calls `copy(host, device)` for each part of the piece, which begins at byte `begin` of the
  /// transfers of `tensor`.
  template <class View, class CopyPart>
  static void ForEachPart(const Piece& piece, std::span<const Transfer> transfers,
                          std::int64_t begin, View tensor, const CopyPart& copy) {
    std::byte* host = piece.view.raw();
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      const Shape row{1, piece.rows[i]};
      if (piece.rows[i] == 0) continue;
      copy(TensorView(host, DType::kU8, row),
           View(tensor.raw() + transfers[i].place + begin, DType::kU8, row, tensor.device()));
      host += piece.rows[i];
    }
  }

  /// Carries all transfers out by `exchange`, which has them in host memory. `most`: bytes of the
  /// longest transfer of any rank.
  template <class Exchange>
  void InPieces(ConstTensorView send, std::span<const Transfer> there, TensorView recv,
                std::span<const Transfer> back, std::int64_t most, Stream& stream,
                const Exchange& exchange) {
    for (std::int64_t begin = 0; begin < most; begin += PieceBytes()) {
      const Piece out = PieceOf(there, begin, staging_->out.get());
      const Piece in = PieceOf(back, begin, staging_->in.get());
      ForEachPart(out, there, begin, send, [&](TensorView host, ConstTensorView rows) {
        Run(Copy{.out = host, .x = rows}, stream);
      });
      stream.Synchronize();  // the piece before has left `in`, too
      exchange(out, in);
      ForEachPart(in, back, begin, recv, [&](TensorView host, TensorView rows) {
        Run(Copy{.out = rows, .x = host}, stream);
      });
    }
    stream.Synchronize();
  }

  std::unique_ptr<Communicator> group_;
  std::shared_ptr<Staging> staging_;
  Stream host_;
};

}  // namespace

std::unique_ptr<Communicator> OverHostMemory(std::unique_ptr<Communicator> world, Gpu& gpu,
                                             std::int64_t buffer_bytes) {
  return std::make_unique<HostStagedCommunicator>(std::move(world),
                                                  std::make_shared<Staging>(gpu, buffer_bytes));
}

}  // namespace jubal

#ifndef JUBAL_PARALLEL_COMMUNICATOR_H_
#define JUBAL_PARALLEL_COMMUNICATOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "kernels/arena.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace jubal {

/// A collective failed or a peer is gone. The rank can only end the job.
class CommunicationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using RowVisitor = std::function<void(std::span<const ConstTensorView> rows_of_rank)>;

/// A fixed group of ranks that exchange tensors.
///
/// Every member makes the same calls, in the same order, with agreeing sizes; a member that does
/// not leaves the others waiting. The tensors of a call lie in one place: on the CPU, where it
/// returns when done, or on the stream's GPU, where it is enqueued. A failure throws
/// CommunicationError, after which this rank must end the job: its peers are already inside the
/// collective. No destructor communicates.
///
/// Nothing here adds numbers: sums are taken by the receiver, in the order its contract says.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;  // this process's position in the group, 0 ≤ rank < size
  virtual int size() const = 0;

  /// gathered ← every rank's rows in rank order; rank r contributes rows[r] of them.
  /// gathered: [≥ Σ rows, n], mine: [≥ rows[rank()], n], both dense and of one dtype. mine may lie
  /// at its own place in gathered.
  virtual void AllGatherRows(TensorView gathered, ConstTensorView mine,
                             std::span<const std::int64_t> rows, Stream& stream) = 0;

  /// AllGatherRows for who only reads: calls `visit` with a view of each rank's rows, in rank
  /// order. They may be in `gathered`, which is as large as for AllGatherRows, or lie where their
  /// ranks have them. `visit` may write to no rank's rows, and does not communicate. It is called
  /// before this returns: of rows on a GPU it enqueues what reads them.
  virtual void VisitRows(TensorView gathered, ConstTensorView mine,
                         std::span<const std::int64_t> rows, const RowVisitor& visit,
                         Stream& stream);

  /// Sends the next send_rows[r] rows of `send` to rank r, for each r in turn, and receives
  /// recv_rows[r] rows from it, placed one rank after the other. My send_rows[you] must equal your
  /// recv_rows[me]. Dense, of one dtype and row size.
  virtual void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows,
                            ConstTensorView send, std::span<const std::int64_t> send_rows,
                            Stream& stream) = 0;

  /// message ← root's message, whatever its length. Host memory; returns when done. Waiting for it
  /// costs little CPU, however long: an idle rank waits here.
  virtual void Broadcast(std::vector<std::byte>& message, int root) = 0;

  /// Zeroed memory for rows that are often sent: what lies here need not be copied on its way to
  /// ranks that share this host's memory. Collective, on a group of all ranks of a host.
  virtual Arena NewArena(std::int64_t bytes);

  /// Returns when every member has called it.
  virtual void Barrier() = 0;

  /// A group of the ranks that pass the same `color`, ordered by rank here. Collective.
  virtual std::unique_ptr<Communicator> Split(int color) = 0;

  /// A group of the ranks that share this host's memory, ordered by rank here. Collective.
  virtual std::unique_ptr<Communicator> SplitByNode() = 0;

  /// Waits until all that was run on the stream is done, as Stream::Synchronize does, but throws
  /// CommunicationError when a call on it will not end. So does the engine wait for a GPU.
  virtual void Wait(Stream& stream) { stream.Synchronize(); }

  /// Whether its calls on a GPU's stream can be recorded in a graph. One rank alone only copies.
  virtual bool capturable() const { return size() == 1; }
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_COMMUNICATOR_H_

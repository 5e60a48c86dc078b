#include "parallel/communicator.h"

#include "parallel/row_transfer.h"

namespace jubal {

void Communicator::VisitRows(TensorView gathered, ConstTensorView mine,
                             std::span<const std::int64_t> rows, const RowVisitor& visit,
                             Stream& stream) {
  AllGatherRows(gathered, mine, rows, stream);
  visit(ViewsOfRanks(gathered, rows));
}

Arena Communicator::NewArena(std::int64_t bytes) { return Arena(bytes); }

}  // namespace jubal

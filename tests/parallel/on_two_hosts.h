#ifndef JUBAL_TESTS_PARALLEL_ON_TWO_HOSTS_H_
#define JUBAL_TESTS_PARALLEL_ON_TWO_HOSTS_H_

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace jubal {

/// A world of one host whose ranks say that they are on two: on number `host`.
class OnTwoHosts final : public Communicator {
 public:
  OnTwoHosts(std::unique_ptr<Communicator> group, int host)
      : group_(std::move(group)), host_(host) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  void AllGatherRows(TensorView gathered, ConstTensorView mine, std::span<const std::int64_t> rows,
                     Stream& stream) override {
    group_->AllGatherRows(gathered, mine, rows, stream);
  }
  void AllToAllRows(TensorView recv, std::span<const std::int64_t> recv_rows, ConstTensorView send,
                    std::span<const std::int64_t> send_rows, Stream& stream) override {
    group_->AllToAllRows(recv, recv_rows, send, send_rows, stream);
  }
  void Broadcast(std::vector<std::byte>& message, int root) override {
    group_->Broadcast(message, root);
  }
  void Barrier() override { group_->Barrier(); }
  std::unique_ptr<Communicator> Split(int color) override {
    return std::make_unique<OnTwoHosts>(group_->Split(color), host_);
  }
  std::unique_ptr<Communicator> SplitByNode() override { return Split(host_); }

 private:
  std::unique_ptr<Communicator> group_;
  int host_;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_ON_TWO_HOSTS_H_

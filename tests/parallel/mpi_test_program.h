#ifndef JUBAL_TESTS_PARALLEL_MPI_TEST_PROGRAM_H_
#define JUBAL_TESTS_PARALLEL_MPI_TEST_PROGRAM_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/gather_values.h"

namespace jubal {

/// Lets a rank other than the first report what fails, and nothing else.
class FailuresOnly : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOnly(int rank) : rank_(rank) {}

 private:
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", rank_,
                 result.file_name() == nullptr ? "" : result.file_name(), result.line_number(),
                 result.message());
  }

  int rank_;
};

/// Runs the program's tests on every rank of the world, in the same order. Returns non-zero on all
/// when any failed. Collective.
inline int RunTestsOnEveryRank(Communicator& world) {
  if (world.rank() != 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly(world.rank()));
  }
  const std::vector<int> results = GatherValues(world, RUN_ALL_TESTS());
  return *std::max_element(results.begin(), results.end());
}

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_MPI_TEST_PROGRAM_H_

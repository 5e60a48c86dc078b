#ifndef JUBAL_TESTS_PARALLEL_LOCAL_WORLD_H_
#define JUBAL_TESTS_PARALLEL_LOCAL_WORLD_H_

#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/local_communicator.h"
#include "parallel/shared_memory_communicator.h"

namespace jubal {

/// Plays `rank_main` on every rank of a local world, each on a thread of its own. Rethrows the
/// first rank's exception, if any.
inline void RunLocalWorld(int size,
                          const std::function<void(std::unique_ptr<Communicator>)>& rank_main) {
  std::vector<std::unique_ptr<Communicator>> world = MakeLocalWorld(size);
  std::vector<std::exception_ptr> failures(world.size());
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < world.size(); ++r) {
    threads.emplace_back([&, r] {
      try {
        rank_main(std::move(world[r]));
      } catch (...) {
        failures[r] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

/// The same, over memory that the threads share.
inline void RunSharedMemoryWorld(
    int size, const std::function<void(std::unique_ptr<Communicator>)>& rank_main) {
  RunLocalWorld(size, [&](std::unique_ptr<Communicator> world) {
    rank_main(OverSharedMemory(std::move(world), {}));
  });
}

/// One of these two, as a test's parameter.
using RunWorld = void (*)(int size,
                          const std::function<void(std::unique_ptr<Communicator>)>& rank_main);

}  // namespace jubal

#endif  // JUBAL_TESTS_PARALLEL_LOCAL_WORLD_H_

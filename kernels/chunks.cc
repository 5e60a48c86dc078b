#include "kernels/chunks.h"

#include "kernels/check.h"

namespace jubal {

std::vector<Subtree> MaximalSubtrees(Range owned) {
  CHECK(owned.begin >= 0 && owned.begin <= owned.end && owned.end <= kChunks);
  std::vector<Subtree> subtrees;
  for (int chunk = static_cast<int>(owned.begin); chunk < owned.end;) {
    int size = 1;
    while (size < kChunks && chunk % (2 * size) == 0 && chunk + 2 * size <= owned.end) size *= 2;
    subtrees.push_back({chunk, size});
    chunk += size;
  }
  return subtrees;
}

}  // namespace jubal

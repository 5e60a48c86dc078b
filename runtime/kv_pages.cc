#include "runtime/kv_pages.h"

#include <limits>

#include "kernels/check.h"

namespace jubal {

KvPages::KvPages(std::int64_t num_pages) {
  CHECK_GE(num_pages, 0);
  CHECK_LE(num_pages, std::numeric_limits<std::int32_t>::max());
  in_use_.resize(static_cast<std::size_t>(num_pages));
  free_.reserve(static_cast<std::size_t>(num_pages));
  for (std::int64_t page = num_pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<std::int32_t>(page));
  }
}

std::int32_t KvPages::Allocate() {
  CHECK(!free_.empty());
  const std::int32_t page = free_.back();
  free_.pop_back();
  in_use_[static_cast<std::size_t>(page)] = true;
  return page;
}

void KvPages::Free(std::span<const std::int32_t> pages) {
  for (const std::int32_t page : pages) {
    CHECK_GE(page, 0);
    CHECK_LT(page, num_pages());
    CHECK(in_use_[static_cast<std::size_t>(page)]);
    in_use_[static_cast<std::size_t>(page)] = false;
    free_.push_back(page);
  }
}

}  // namespace jubal

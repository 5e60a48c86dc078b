#ifndef JUBAL_RUNTIME_KV_PAGES_H_
#define JUBAL_RUNTIME_KV_PAGES_H_

#include <cstdint>
#include <span>
#include <vector>

namespace jubal {

/// Which KV pages of one data group are in use. Numbers only: behind each page, every rank of the
/// group has memory of its own.
class KvPages {
 public:
  explicit KvPages(std::int64_t num_pages);

  std::int64_t num_pages() const { return static_cast<std::int64_t>(in_use_.size()); }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }

  std::int32_t Allocate();  // there must be a free one
  void Free(std::span<const std::int32_t> pages);

 private:
  std::vector<std::int32_t> free_;  // a stack: the page freed last is the first in use again
  std::vector<bool> in_use_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_KV_PAGES_H_

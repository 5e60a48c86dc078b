#include "runtime/kv_pages.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

namespace jubal {
namespace {

// If this fails, two requests share a page and read each other's keys and values.
TEST(KvPagesTest, HandsOutEachPageOnce) {
  KvPages pages(5);
  std::set<std::int32_t> given;
  for (int i = 0; i < 5; ++i) given.insert(pages.Allocate());
  EXPECT_EQ(given, (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pages.num_free(), 0);
  EXPECT_EQ(pages.num_pages(), 5);
}

// If this fails, pages leak and the server admits fewer and fewer requests until it stalls.
TEST(KvPagesTest, FreedPagesAreHandedOutAgain) {
  KvPages pages(3);
  std::vector<std::int32_t> first = {pages.Allocate(), pages.Allocate(), pages.Allocate()};
  pages.Free(std::array{first[1]});
  EXPECT_EQ(pages.num_free(), 1);
  EXPECT_EQ(pages.Allocate(), first[1]);
  pages.Free(first);
  EXPECT_EQ(pages.num_free(), 3);
}

// If this fails, the leader's page numbers differ between two runs of the same traffic, and a fault
// cannot be replayed.
TEST(KvPagesTest, OrderIsTheSameEveryTime) {
  KvPages a(4);
  KvPages b(4);
  for (KvPages* pages : {&a, &b}) {
    pages->Allocate();
    pages->Allocate();
    pages->Free(std::array<std::int32_t, 2>{1, 0});
  }
  for (int i = 0; i < 4; ++i) EXPECT_EQ(a.Allocate(), b.Allocate());
}

// If this fails, a bookkeeping bug corrupts streams of strangers instead of ending the job.
TEST(KvPagesDeathTest, RefusesWhatBookkeepingMustNeverDo) {
  KvPages pages(2);
  const std::int32_t page = pages.Allocate();
  pages.Free(std::array{page});
  EXPECT_DEATH(pages.Free(std::array{page}), "in_use_");
  EXPECT_DEATH(pages.Free(std::array<std::int32_t, 1>{2}), "num_pages");
  EXPECT_DEATH(pages.Free(std::array<std::int32_t, 1>{-1}), "page >= 0");
  pages.Allocate();
  pages.Allocate();
  EXPECT_DEATH(pages.Allocate(), "empty");
}

}  // namespace
}  // namespace jubal

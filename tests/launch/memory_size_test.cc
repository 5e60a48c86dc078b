#include "launch/memory_size.h"

#include <limits>

#include <gtest/gtest.h>

namespace jubal {
namespace {

TEST(MemorySizeTest, ReadsDecimalAndBinaryUnits) {
  EXPECT_EQ(ParseMemorySize("80GB"), 80'000'000'000);
  EXPECT_EQ(ParseMemorySize("4GiB"), std::int64_t{4} << 30);
  EXPECT_EQ(ParseMemorySize("512MB"), 512'000'000);
  EXPECT_EQ(ParseMemorySize("1.5TB"), 1'500'000'000'000);
  EXPECT_EQ(ParseMemorySize("12345"), 12345);
  EXPECT_EQ(ParseMemorySize("1kB"), 1000);
  EXPECT_EQ(ParseMemorySize("0"), 0);
  EXPECT_EQ(ParseMemorySize("9223372036854775807"), std::numeric_limits<std::int64_t>::max());
}

TEST(MemorySizeTest, RefusesTheRest) {
  for (const char* text :
       {"", "GB", "4 GB", "4G", "4gb", "-1", "-1GB", "1e9", "nan", "inf", "0x10", "1GBs",
        "9223372036854775808", "8388608TiB", "9300000TB", "8388608.5TiB"}) {
    EXPECT_EQ(ParseMemorySize(text), std::nullopt) << text;
  }
}

TEST(MemorySizeTest, WritesForPeople) {
  EXPECT_EQ(MemorySizeText(0), "0 bytes");
  EXPECT_EQ(MemorySizeText(999), "999 bytes");
  EXPECT_EQ(MemorySizeText(1000), "1.0 kB");
  EXPECT_EQ(MemorySizeText(999'960), "1.0 MB");
  EXPECT_EQ(MemorySizeText(158'100'000'000), "158.1 GB");
  EXPECT_EQ(MemorySizeText(5'000'000'000'000'000), "5000.0 TB");
}

}  // namespace
}  // namespace jubal

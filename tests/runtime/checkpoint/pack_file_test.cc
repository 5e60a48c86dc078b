#include "runtime/checkpoint/pack_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/scratch_directory.h"

namespace jubal {
namespace {

/// Two weights, sized to need padding between all their sections.
std::vector<PackedWeight> TwoWeights() {
  std::vector<PackedWeight> weights{
      {.name = "norm", .type = WeightType::kF32, .k = 5, .n = 0, .data = {}, .scales = {}},
      {.name = "gate",
       .type = WeightType::kInt8,
       .k = 8,
       .n = 64,
       .experts = 3,
       .group_rows = 8,
       .data = {},
       .scales = {}}};
  weights[0].data.bytes = 20;
  weights[1].data.bytes = 3 * 8 * 64 + 1;
  weights[1].scales.bytes = 3 * 64 * 4;
  return weights;
}

/// A whole file of those weights, data included.
std::string PackOf(std::vector<PackedWeight> weights) {
  const std::uint64_t data_bytes = PlacePackSections(weights);
  std::string data(data_bytes, '\0');
  for (PackedWeight& weight : weights) {
    for (PackSection* section : {&weight.data, &weight.scales}) {
      for (std::uint64_t i = 0; i < section->bytes; ++i) {
        data[section->offset + i] = static_cast<char>(i * 7 + section->offset);
      }
      PackChecksum checksum;
      checksum.Add(std::as_bytes(std::span(data)).subspan(section->offset, section->bytes));
      section->checksum = checksum.value();
    }
  }
  return PackHeader(weights, data_bytes) + data;
}

std::vector<PackedWeight> Read(const std::string& file) {
  return ReadPackHeader(std::as_bytes(std::span(file)), "some.pack");
}

void ExpectRefused(const std::string& file, const std::string& why) {
  ExpectUserError(ExitStatus::kBadData, [&file] { Read(file); }, {"some.pack", why});
}

// Every weight of a packed model is found through this.
TEST(PackFileTest, GivesBackWhatWasWritten) {
  const std::vector<PackedWeight> weights = Read(PackOf(TwoWeights()));
  ASSERT_EQ(weights.size(), 2u);
  EXPECT_EQ(weights[0].name, "norm");
  EXPECT_EQ(weights[0].type, WeightType::kF32);
  EXPECT_EQ(weights[0].n, 0);
  EXPECT_EQ(weights[0].data.bytes, 20u);
  EXPECT_EQ(weights[0].scales.bytes, 0u);
  EXPECT_EQ(weights[1].name, "gate");
  EXPECT_EQ(weights[1].type, WeightType::kInt8);
  EXPECT_EQ(weights[1].k, 8);
  EXPECT_EQ(weights[1].n, 64);
  EXPECT_EQ(weights[1].experts, 3);
  EXPECT_EQ(weights[1].group_rows, 8);
  EXPECT_EQ(weights[0].data.offset, 4096u);
  EXPECT_EQ(weights[1].data.offset, 2 * 4096u);
  EXPECT_EQ(weights[1].scales.offset, 2 * 4096u + 1600);
}

// A download that stopped would be served with zeros, or end the process where it first touches
// what is missing.
TEST(PackFileTest, RefusesAFileOfAnotherLength) {
  const std::string file = PackOf(TwoWeights());
  for (const std::size_t size : {file.size() - 1, file.size() / 2, std::size_t{4097}}) {
    ExpectRefused(file.substr(0, size), "copy or pack it again");
  }
  for (const std::size_t size : {0, 1, 47}) ExpectRefused(file.substr(0, size), "cut off");
  ExpectRefused(file + '\0', "copy or pack it again");
}

// One flipped bit of an offset would give a rank other weights.
TEST(PackFileTest, RefusesEveryFlippedByteOfHeaderAndManifest) {
  const std::string file = PackOf(TwoWeights());
  const std::size_t end = file.find(']') + 1;
  ASSERT_LT(end, 4096u);
  for (std::size_t i = 0; i < end; ++i) {
    std::string damaged = file;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    ExpectRefused(damaged, "");
  }
}

// After an upgrade the user must hear that the pack is old, not that it is damaged.
TEST(PackFileTest, RefusesAnotherVersionOrLayoutByName) {
  const std::string file = PackOf(TwoWeights());
  const auto with = [&file](std::size_t place, std::uint32_t value) {
    std::string other = file;
    std::memcpy(other.data() + place, &value, sizeof value);
    return other;
  };
  ExpectRefused(with(8, 0), "version 0 of the format, but this jubal reads version 1: pack");
  ExpectRefused(with(8, 2), "version 2");
  ExpectRefused(with(12, 32), "blocks of 32 columns");
  ExpectRefused(with(16, 16), "16 chunks");
  ExpectRefused(with(20, 8), "steps of 8 bytes");
  ExpectRefused("GGUF" + file.substr(4), "no pack");
}

// A hostile manifest has a right checksum.
TEST(PackFileTest, RefusesManifestsThatLie) {
  const nlohmann::json good = nlohmann::json::parse(R"([
    {"name": "a", "type": "f32", "k": 4, "n": 1, "experts": 1, "group_rows": 0,
     "data_offset": 0, "data_bytes": 4096, "data_xxh3": "0123456789abcdef"},
    {"name": "b", "type": "int4", "k": 4, "n": 1, "experts": 1, "group_rows": 64,
     "data_offset": 4096, "data_bytes": 100, "data_xxh3": "0123456789abcdef",
     "scales_offset": 4224, "scales_bytes": 76, "scales_xxh3": "0123456789abcdef"}])");
  const auto parse = [](const std::string& text) {
    return ParsePackManifest(text, 4300, "some.pack");
  };
  ASSERT_EQ(parse(good.dump()).size(), 2u);
  const auto refused = [&](const std::string& text, const std::string& why) {
    ExpectUserError(ExitStatus::kBadData, [&] { parse(text); }, {"some.pack", why});
  };
  const auto changed = [&](int weight, const char* field, const nlohmann::json& value,
                           const std::string& why) {
    nlohmann::json bad = good;
    bad[static_cast<std::size_t>(weight)][field] = value;
    refused(bad.dump(), why);
  };
  const std::uint64_t huge = ~std::uint64_t{0};
  changed(0, "type", "f16", "its type is \"f16\"");
  changed(0, "k", 0, "\"a\": its k is 0");
  changed(0, "k", std::uint64_t{1} << 31, "its k is");
  changed(0, "n", huge, "its n is");
  changed(0, "experts", 0, "its experts");
  changed(0, "k", -4, "the number -4");
  changed(0, "k", 4.5, "the number");
  changed(0, "k", "4", "a string");
  changed(0, "name", 4, "a number");
  changed(0, "name", nullptr, "null");
  changed(0, "k", {4}, "a list");
  changed(0, "name", std::string(65, 'x'), "65 bytes");
  changed(0, "group_rows", 4, "f32 with groups of 4 rows");
  changed(1, "group_rows", 0, "int4 with groups of 0 rows");
  changed(1, "group_rows", 513, "int4 with groups of 513 rows");
  changed(0, "scales_offset", 0, "is no integer, but has scales_offset");
  changed(0, "colour", 1, "unknown field \"colour\"");
  changed(0, "data_xxh3", "0123", "checksum");
  changed(0, "data_xxh3", "0123456789abcdeg", "checksum");
  changed(1, "data_offset", 4095, "aligned to 4096");
  changed(1, "data_offset", 0, "between 4096, the end of what is before");
  changed(1, "data_bytes", 205, "205 bytes of data");
  changed(1, "data_bytes", huge, "bytes of data");
  changed(1, "data_offset", huge / 4096 * 4096, "aligned");
  changed(1, "scales_offset", 4225, "aligned to 64");
  changed(1, "scales_offset", 4160, "76 bytes of scales");  // inside the data
  changed(1, "scales_bytes", 77, "77 bytes of scales");
  nlohmann::json lacking = good;
  lacking[1].erase("scales_bytes");
  refused(lacking.dump(), "\"b\": it lacks scales_bytes");
  refused(R"([{"name": "a", "name": "a")", "two fields name");
  refused("", "stops being JSON");
  refused("[", "stops being JSON");
  refused("[] []", "stops being JSON");
  refused("{}", "an object");
  refused("[[]]", "a list");
  refused("[{}]", "its type");
  refused(R"([{"name": {}}])", "an object");
  refused("7", "a number");
}

// A disk that rots must be found out before its model answers.
TEST(PackFileTest, VerifyNamesTheFirstDamagedWeight) {
  const ScratchDirectory scratch;
  const std::string file = PackOf(TwoWeights());
  const auto verify = [&](const std::string& content) {
    const Pack pack = Pack::Open(scratch.Write("some.pack", content));
    std::int64_t last = 0;
    VerifyPack(pack, 3, [&last](std::int64_t done, std::int64_t total) {
      EXPECT_LE(last, done);
      EXPECT_LE(done, total);
      last = done;
    });
    return last;
  };
  EXPECT_EQ(verify(file), 20 + 3 * 8 * 64 + 1 + 3 * 64 * 4);
  const auto damaged = [&](const std::vector<std::size_t>& places, const std::string& what) {
    std::string content = file;
    for (const std::size_t place : places) content[place] = static_cast<char>(content[place] ^ 1);
    ExpectUserError(ExitStatus::kBadData, [&] { verify(content); }, {"some.pack", what});
  };
  damaged({4096}, "the data of norm");
  damaged({4096 + 19}, "the data of norm");
  damaged({2 * 4096 + 1536}, "the data of gate");
  damaged({file.size() - 1}, "the scales of gate");
  damaged({file.size() - 1, 4096, 2 * 4096}, "the data of norm");
}

TEST(PackFileTest, NamesAFileThatIsMissing) {
  ExpectUserError(ExitStatus::kNoInput, [] { Pack::Open("/no/such/pack"); }, {"/no/such/pack"});
}

}  // namespace
}  // namespace jubal

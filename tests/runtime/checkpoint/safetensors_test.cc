#include "runtime/checkpoint/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/mapped_file.h"
#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/safetensors_file.h"
#include "tests/runtime/checkpoint/scratch_directory.h"

namespace jubal {
namespace {

std::vector<SafetensorsEntry> Read(const std::string& file) {
  return ReadSafetensorsHeader(std::as_bytes(std::span(file)), "w");
}

void ExpectFileRefused(const std::string& file, std::vector<std::string> parts) {
  parts.push_back("w: ");
  ExpectUserError(
      ExitStatus::kBadData, [&file] { Read(file); }, parts);
}

void ExpectRefused(const std::string& header, std::size_t data_size,
                   const std::vector<std::string>& parts) {
  ExpectFileRefused(SafetensorsFile(header, data_size), parts);
}

/// One tensor of 8 bytes, its fields as given.
void ExpectTensorRefused(const std::string& fields, const std::vector<std::string>& parts) {
  ExpectRefused(R"({"t":{)" + fields + "}}", 8, parts);
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  std::uint64_t begin, std::uint64_t end) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, dtype,
                     shape, begin, end);
}

const char* const kTwoTensors = R"({"__metadata__":{"format":"pt","x":"y"},)"
                                R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
                                R"("a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}   )";

/// Reads a hostile file: it is refused, or its tensors tile the data. True when accepted.
bool SurvivesReading(const std::string& file) {
  try {
    const std::vector<SafetensorsEntry> entries = Read(file);
    std::size_t end = file.size();
    std::set<std::string> names;
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
      EXPECT_EQ(entry->array.offset + entry->array.length, end);
      EXPECT_EQ(StoredLength(entry->array.shape, entry->array.dtype), entry->array.length);
      EXPECT_TRUE(names.insert(entry->name).second);
      end = entry->array.offset;
    }
    return true;
  } catch (const UserError& error) {
    EXPECT_EQ(static_cast<int>(error.status()), static_cast<int>(ExitStatus::kBadData));
    return false;
  }
}

// Every model from Hugging Face is read by this; a wrong offset is a model that talks nonsense.
TEST(SafetensorsTest, DescribesTensorsByOffset) {
  const std::string file = SafetensorsFile(kTwoTensors, 20);
  const std::vector<SafetensorsEntry> entries = Read(file);
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].name, "a");
  EXPECT_EQ(entries[0].array.dtype, DType::kF32);
  EXPECT_EQ(entries[0].array.shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(entries[0].array.offset, file.size() - 20);
  EXPECT_EQ(entries[0].array.length, 8U);
  EXPECT_EQ(entries[1].name, "b");
  EXPECT_EQ(entries[1].array.dtype, DType::kBf16);
  EXPECT_EQ(entries[1].array.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(entries[1].array.offset, file.size() - 12);
  EXPECT_EQ(entries[1].array.length, 12U);
}

// Weights, quantised weights, scales and tables come in all of these.
TEST(SafetensorsTest, KnowsItsDtypes) {
  const std::pair<const char*, DType> dtypes[] = {
      {"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBf16}, {"F64", DType::kF64},
      {"I8", DType::kI8},   {"U8", DType::kU8},   {"I32", DType::kI32},   {"I64", DType::kI64}};
  for (const auto& [name, dtype] : dtypes) {
    const auto size = static_cast<std::size_t>(SizeOf(dtype)) * 3;
    const auto entries = Read(SafetensorsFile("{" + Entry("t", name, "3", 0, size) + "}", size));
    EXPECT_EQ(entries.at(0).array.dtype, dtype);
  }
  for (const char* const name : {"F8_E4M3", "BOOL", "U16", "f32", ""}) {
    ExpectRefused("{" + Entry("layer.0", name, "3", 0, 3) + "}", 3,
                  {"tensor \"layer.0\"", fmt::format("its dtype is \"{}\"", name)});
  }
}

// Scalars and empty tensors are legal and do occur.
TEST(SafetensorsTest, AcceptsScalarsAndEmptyTensors) {
  const auto entries = Read(SafetensorsFile("{" + Entry("scalar", "F32", "", 0, 4) + "," +
                                                Entry("z", "F32", "0,5", 4, 4) + "," +
                                                Entry("y", "I8", "5,0", 0, 0) + "}",
                                            4));
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0].name, "y");
  EXPECT_EQ(entries[1].name, "scalar");
  EXPECT_EQ(entries[2].name, "z");
  EXPECT_TRUE(Read(SafetensorsFile("{}", 0)).empty());
}

// The tensors must keep the file mapped: otherwise the loader reads freed memory.
TEST(SafetensorsTest, TensorsKeepTheirFile) {
  const ScratchDirectory scratch;
  std::vector<StoredTensor> tensors = ReadSafetensors(
      std::make_shared<MappedFile>(scratch.Write("m", SafetensorsFile(kTwoTensors, 20))));
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_EQ(tensors[1].name, "b");
  ASSERT_EQ(tensors[1].bytes().size(), 12U);
  EXPECT_EQ(tensors[1].bytes()[0], std::byte{9});
  EXPECT_EQ(tensors[0].bytes()[0], std::byte{1});
}

// Files of the real writer must be read, whatever order and padding it chooses.
TEST(SafetensorsTest, ReadsFilesOfTheRealLibrary) {
  const std::filesystem::path golden = std::filesystem::path(JUBAL_TEST_DATA) / "golden";
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden)) {
    if (entry.path().extension() != ".safetensors") continue;
    SCOPED_TRACE(entry.path().string());
    EXPECT_FALSE(ReadSafetensors(std::make_shared<MappedFile>(entry.path())).empty());
    ++files;
  }
  EXPECT_GT(files, 0);
}

// A file cut short by a full disk or a broken download would crash the server.
TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string file = SafetensorsFile(kTwoTensors, 20);
  for (std::size_t length = 0; length < file.size(); ++length) {
    ExpectFileRefused(file.substr(0, length), {});
  }
  ExpectFileRefused(file + "x", {"tensors end at data byte 20, but the file has 21"});
}

// A flipped bit on disk would crash the server or send it reading outside the file.
TEST(SafetensorsTest, SurvivesEveryChangedByte) {
  const std::string file = SafetensorsFile(kTwoTensors, 20);
  int accepted = 0;
  for (std::size_t place = 0; place < file.size(); ++place) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = file;
      changed[place] = static_cast<char>(value);
      accepted += SurvivesReading(changed) ? 1 : 0;
    }
  }
  EXPECT_GT(accepted, 0);
}

// A claimed header length could make the server read outside the file or take all memory.
TEST(SafetensorsTest, BoundsTheHeader) {
  const std::string big(100, ' ');
  const auto claim = [&big](std::uint64_t length) {
    std::string file;
    for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(length >> (8 * i) & 0xff));
    return file + big;
  };
  ExpectFileRefused(claim(101), {"claims 101 bytes, but the file ends after 100"});
  ExpectFileRefused(claim(100'000'000), {"claims 100000000 bytes, but the file ends"});
  ExpectFileRefused(claim(100'000'001), {"claims 100000001 bytes, more than 100000000"});
  ExpectFileRefused(claim(~std::uint64_t{0}), {"claims 18446744073709551615 bytes, more than"});
  ExpectFileRefused(claim(0), {"does not start with {"});
  ExpectFileRefused(claim(100), {"does not start with {"});
  ExpectFileRefused("", {"at least 8 bytes, not 0"});
}

// Overlaps and gaps hide data, and let one file mean different things to different readers.
TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  const auto refused = [](const std::string& second, std::size_t data_size,
                          const std::string& part) {
    ExpectRefused("{" + Entry("a", "I8", "4", 0, 4) + "," + second + "}", data_size,
                  {"tensor \"b\": ", part});
  };
  refused(Entry("b", "I8", "4", 3, 7), 7, "starts at data byte 3, inside the end");
  refused(Entry("b", "I8", "4", 0, 4), 4, "starts at data byte 0, inside the end");
  refused(Entry("b", "I8", "4", 5, 9), 9, "starts at data byte 5, past the end");
  refused(Entry("b", "I8", "4", 4, 8), 7, "ends at data byte 8, but the file has 7");
  refused(Entry("b", "I8", "0", 2, 2), 4, "starts at data byte 2, inside the end");
  ExpectRefused("{" + Entry("a", "I8", "4", 1, 5) + "}", 5, {"starts at data byte 1, past"});
  ExpectRefused("{}", 1, {"tensors end at data byte 0, but the file has 1"});
}

// Shapes that lie about the data would make the loader read outside its tensor.
TEST(SafetensorsTest, RefusesShapesThatTheDataDoesNotFill) {
  const auto refused = [](const std::string& dtype, const std::string& shape,
                          const std::string& offsets, const std::string& part) {
    ExpectTensorRefused(
        fmt::format(R"("dtype":"{}","shape":[{}],"data_offsets":[{}])", dtype, shape, offsets),
        {"tensor \"t\"", part});
  };
  refused("F32", "3", "0,8", "[3] f32 does not fill bytes 0 to 8");
  refused("F32", "4611686018427387906", "0,8", "does not fill");    // 2^62 + 2
  refused("F32", "2305843009213693954", "0,8", "does not fill");    // 2^61 + 2
  refused("F64", "4294967296,4294967296", "0,0", "does not fill");  // 2^64 elements
  refused("I8", "9223372036854775807,2", "0,8", "does not fill");
  refused("F32", "18446744073709551615", "0,8", "a dimension of 18446744073709551615");
  refused("F32", "18446744073709551616", "0,8", "where none belongs");  // no integer any more
  refused("F32", "-2", "0,8", "number -2");
  refused("F32", "2.0", "0,8", "number \"2.0\"");
  refused("F32", "\"2\"", "0,8", "a string where none belongs");
  refused("F32", "[2]", "0,8", "an array where none belongs");
  refused("I8", "1,1,1,1,1,1,1,1,8", "0,8", "more than 8 dimensions");
  refused("F32", "2", "8,0", "does not fill");
  refused("F32", "2", "18446744073709551608,0", "does not fill");
  refused("F32", "2", "18446744073709551608,18446744073709551615", "does not fill");
  refused("F32", "2", "18446744073709551600,18446744073709551608", "starts at data byte");
  refused("F32", "2", "0", "two data_offsets");
  refused("F32", "2", "", "two data_offsets");
  refused("F32", "2", "0,8,8", "more than two data_offsets");
}

// A second tensor, field or metadata of the same name would let two readers see two models.
TEST(SafetensorsTest, RefusesDuplicates) {
  ExpectRefused("{" + Entry("a", "I8", "4", 0, 4) + "," + Entry("a", "I8", "4", 4, 8) + "}", 8,
                {"tensor \"a\" comes twice"});
  ExpectRefused("{" + Entry("a", "I8", "4", 0, 4) + "," + Entry("\\u0061", "I8", "4", 4, 8) + "}",
                8, {"tensor \"a\" comes twice"});
  ExpectTensorRefused(R"("dtype":"I8","dtype":"I8")", {"tensor \"t\"", "a field twice"});
  ExpectTensorRefused(R"("shape":[8],"shape":[8])", {"tensor \"t\"", "a field twice"});
  ExpectTensorRefused(R"("data_offsets":[0],"data_offsets":[8])", {"a field twice"});
  ExpectRefused(R"({"__metadata__":{},"__metadata__":{}})", 0, {"__metadata__ comes twice"});
}

// Anything that is not the format would be misread, or crash the parser.
TEST(SafetensorsTest, RefusesOtherJson) {
  ExpectTensorRefused("", {"lacks its dtype"});
  ExpectTensorRefused(R"("dtype":"I8","shape":[8])", {"tensor \"t\"", "lacks"});
  ExpectTensorRefused(R"("dtype":"I8","data_offsets":[0,8])", {"lacks"});
  ExpectTensorRefused(R"("shape":[8],"data_offsets":[0,8])", {"lacks"});
  ExpectTensorRefused(R"("name":"I8")", {"unknown field \"name\""});
  ExpectTensorRefused(R"("dtype":8)", {"a number where none belongs"});
  ExpectTensorRefused(R"("dtype":null)", {"null where none belongs"});
  ExpectTensorRefused(R"("dtype":["I8"])", {"an array where none belongs"});
  ExpectTensorRefused(R"("shape":{})", {"an object where none belongs"});
  ExpectTensorRefused(R"("shape":true)", {"a truth value where none belongs"});
  ExpectTensorRefused(R"("shape":8)", {"a number where none belongs"});
  for (const char* const value : {"1", "-1", "1.5", "null", "true", "[]", "\"x\""}) {
    ExpectRefused(fmt::format(R"({{"t":{}}})", value), 0, {"where none belongs"});
  }
  for (const char* const value :
       {"1", "null", "[]", "\"x\"", R"({"x":1})", R"({"x":{}})", R"({"x":["y"]})"}) {
    ExpectRefused(fmt::format(R"({{"__metadata__":{}}})", value), 0, {"where none belongs"});
  }
  for (const char* const header : {"{", "{]", "{\"t\"", "{\"t\":}", "{}{}", "{} x", "{,}",
                                   "{'t':1}", "{\"\xff\":{}}", "{/**/}", "{\"\\ud800\":{}}"}) {
    ExpectRefused(header, 0, {"stops being JSON before byte"});
  }
  ExpectRefused(std::string("{\0}", 3), 0, {"stops being JSON before byte"});
}

// Deep nesting overflows the stack of a recursive parser.
TEST(SafetensorsTest, RefusesDeepNesting) {
  std::string deep;
  for (int i = 0; i < 1'000'000; ++i) deep += R"({"shape":)";
  ExpectRefused(deep, 0, {"an object where none belongs"});
  std::string arrays = R"({"t":{"shape":)" + std::string(1'000'000, '[');
  ExpectRefused(arrays, 0, {"an array where none belongs"});
}

// Giant tables and names would exhaust memory, and raw ones could drive the terminal.
TEST(SafetensorsTest, BoundsNamesAndTheirNumber) {
  const std::string name(512, 'n');
  EXPECT_EQ(Read(SafetensorsFile("{" + Entry(name, "I8", "1", 0, 1) + "}", 1)).size(), 1U);
  ExpectRefused("{" + Entry(name + "n", "I8", "1", 0, 1) + "}", 1, {"more than 512 bytes"});
  ExpectRefused("{" + Entry("\\u001b[2J", "X", "1", 0, 1) + "}", 1, {R"(tensor "\x1b[2J")"});

  std::string header = "{";
  for (int i = 0; i < 200'000; ++i) header += Entry(fmt::format("{}", i), "I8", "0", 0, 0) + ",";
  std::string most = header;
  most.back() = '}';
  EXPECT_EQ(Read(SafetensorsFile(most, 0)).size(), 200'000U);
  ExpectRefused(header + Entry("x", "I8", "0", 0, 0) + "}", 0, {"more than 200000 tensors"});
}

}  // namespace
}  // namespace jubal

#include "runtime/checkpoint/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/scratch_directory.h"

namespace jubal {
namespace {

std::string Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void ExpectUnreadable(const std::filesystem::path& path, const std::string& why) {
  ExpectUserError(ExitStatus::kNoInput, [&path] { MappedFile file(path); }, {path.string(), why});
}

// Every weight is read through this: wrong bytes here are wrong answers everywhere.
TEST(MappedFileTest, ShowsTheBytesOfTheFile) {
  const ScratchDirectory scratch;
  const MappedFile file(scratch.Write("weights", "some bytes"));
  EXPECT_EQ(Text(file), "some bytes");
  EXPECT_EQ(file.path(), scratch.path() / "weights");
}

// An empty file of a broken download would crash the server instead of being named.
TEST(MappedFileTest, MapsAnEmptyFile) {
  const ScratchDirectory scratch;
  const MappedFile file(scratch.Write("empty", ""));
  EXPECT_TRUE(file.bytes().empty());
  file.WillNeed(0, 0);
  file.DoneWith(0, 0);
}

// The user would not learn which file to mend, or the server would hang on a pipe.
TEST(MappedFileTest, RefusesWhatIsNoReadableFile) {
  const ScratchDirectory scratch;
  ExpectUnreadable(scratch.path() / "absent", "No such file");
  ExpectUnreadable(scratch.path(), "not a regular file");
  const std::filesystem::path pipe = scratch.path() / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ExpectUnreadable(pipe, "not a regular file");
  ExpectUnreadable("/dev/null", "not a regular file");
}

// A mapping unmapped twice, or early, would crash whoever still reads weights.
TEST(MappedFileTest, MovesWithItsBytes) {
  const ScratchDirectory scratch;
  MappedFile first(scratch.Write("first", "first"));
  const std::span<const std::byte> bytes = first.bytes();
  MappedFile second(std::move(first));
  EXPECT_EQ(second.bytes().data(), bytes.data());
  MappedFile third(scratch.Write("third", "third"));
  third = std::move(second);
  EXPECT_EQ(third.bytes().data(), bytes.data());
  EXPECT_EQ(Text(third), "first");
}

// A loader that gives memory back as it goes must still read the same bytes afterwards.
TEST(MappedFileTest, StaysReadableAfterAdvice) {
  const ScratchDirectory scratch;
  std::string text(100'000, ' ');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * i >> 5);
  const MappedFile file(scratch.Write("weights", text));
  file.WillNeed(4095, 2);
  file.WillNeed(0, text.size());
  EXPECT_EQ(Text(file), text);
  file.DoneWith(5000, 90'001);
  file.DoneWith(text.size(), 0);
  EXPECT_EQ(Text(file), text);
}

// A start would go on before its weights are there, or with others.
TEST(MappedFileTest, PopulatesAnyRange) {
  const ScratchDirectory scratch;
  const std::string text(100'000, 'x');
  const MappedFile file(scratch.Write("weights", text));
  file.PreferHugePages();
  EXPECT_TRUE(file.Populate(0, 0));
  EXPECT_TRUE(file.Populate(5001, 1));
  EXPECT_TRUE(file.Populate(0, text.size()));
  EXPECT_TRUE(file.Populate(text.size(), 0));
  EXPECT_EQ(Text(file), text);
  const MappedFile empty(scratch.Write("empty", ""));
  empty.PreferHugePages();
  EXPECT_TRUE(empty.Populate(0, 0));
}

// The disk fails, or somebody cut the file: the user must hear of it, not find a dead process.
TEST(MappedFileTest, TellsWhatCannotBeRead) {
  const ScratchDirectory scratch;
  const std::filesystem::path path = scratch.Write("weights", std::string(100'000, 'x'));
  const MappedFile file(path);
  std::filesystem::resize_file(path, 5000);
  EXPECT_TRUE(file.Populate(0, 8192));
  EXPECT_FALSE(file.Populate(50'000, 10));
}

// 770 files of one checkpoint are open at once, where a process may have 1024 descriptors.
TEST(MappedFileTest, KeepsNoDescriptorOpen) {
  const auto descriptors = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const ScratchDirectory scratch;
  const std::filesystem::path path = scratch.Write("weights", "bytes");
  const auto before = descriptors();
  std::vector<MappedFile> files;
  for (int i = 0; i < 100; ++i) files.emplace_back(path);
  EXPECT_EQ(descriptors(), before);
}

// A range outside the file is a bug of ours, and would advise on another file's pages.
TEST(MappedFileDeathTest, ChecksRanges) {
  const ScratchDirectory scratch;
  const MappedFile file(scratch.Write("weights", "bytes"));
  EXPECT_DEATH(file.WillNeed(3, 3), "check failed");
  EXPECT_DEATH(file.DoneWith(6, 0), "check failed");
  EXPECT_DEATH(static_cast<void>(file.Populate(5, 1)), "check failed");
  EXPECT_DEATH(file.DoneWith(1, static_cast<std::size_t>(-1)), "check failed");
}

}  // namespace
}  // namespace jubal

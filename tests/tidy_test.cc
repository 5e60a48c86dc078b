#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace jubal {
namespace {

namespace fs = std::filesystem;

const std::set<std::string> kTopLevel{"kernels",
                                      "parallel",
                                      "runtime",
                                      "proto",
                                      "rpc",
                                      "launch",
                                      "tests",
                                      "benchmarks",
                                      "docs",
                                      "README.md",
                                      "LICENSE",
                                      "ARCHITECTURE.md",
                                      "CMakeLists.txt",
                                      "CMakePresets.json",
                                      ".clang-format",
                                      ".clang-tidy",
                                      ".ci",
                                      ".gitignore"};
const std::set<std::string> kNotOurs{"build", ".git", ".cache", "__pycache__"};  // or made by tools

/// What a folder may include. Tests and benchmarks may include anything.
struct Arrow {
  std::string_view folder;
  std::set<std::string_view> targets;
};
const std::array kArrows{
    Arrow{"kernels", {"kernels"}},
    Arrow{"parallel", {"parallel", "kernels"}},
    Arrow{"runtime", {"runtime", "parallel", "kernels"}},
    // proto's generated code lies in jubal, google and grpc.
    Arrow{"rpc", {"rpc", "jubal", "google", "grpc", "runtime", "parallel", "kernels"}},
    Arrow{"launch", {"launch", "rpc", "runtime", "parallel", "kernels"}},
};

/// A pattern that only some places may have. tests/x and benchmarks/x may have what x may have.
struct OnlyIn {
  const char* pattern;               // searched for in each line
  std::vector<std::string> files;    // ends of the names of the files it holds for; none: all
  std::vector<std::string> allowed;  // beginnings of paths
};
const std::vector<std::string> kCode{".h", ".cc", ".cu"};
const std::array kOnlyIn{
    OnlyIn{R"(^\s*#\s*include <(mpi|nccl)\b)", kCode, {"parallel/"}},
    OnlyIn{R"(^\s*#\s*include <grpc)", kCode, {"rpc/"}},
    OnlyIn{R"(^\s*#\s*include .(google/|.*\.pb\.h))", kCode, {"rpc/", "runtime/tokenizer/"}},
    OnlyIn{R"(^\s*#\s*include <(imm|x86)intrin\.h)", kCode, {"kernels/"}},
    OnlyIn{R"(^\s*#\s*include <(cuda|cub/|cublas|cute/|cutlass))", kCode, {"kernels/"}},
    OnlyIn{R"(^\s*#\s*include <boost/program_options)", kCode, {"launch/"}},
    OnlyIn{R"(\b(abort|exit|_exit|_Exit|quick_exit)\()",
           kCode,
           {"kernels/check.cc", "parallel/mpi_communicator.cc", "launch/", "tests/"}},
    OnlyIn{R"(\busing namespace\b)", kCode, {}},
    OnlyIn{R"((^|[^\w.])/(work|root|home)/)", {}, {}},
};

struct SourceFile {
  std::string path;  // relative to the root
  std::vector<std::string> lines;

  bool EndsWithOneOf(const std::vector<std::string>& ends) const {
    return ends.empty() || std::any_of(ends.begin(), ends.end(),
                                       [&](const std::string& end) { return path.ends_with(end); });
  }
  std::string folder() const { return path.substr(0, path.find('/')); }
  bool HasLineLike(const std::regex& pattern) const {
    return std::any_of(lines.begin(), lines.end(),
                       [&](const std::string& line) { return std::regex_search(line, pattern); });
  }
};

fs::path Root() { return JUBAL_SOURCE_DIR; }

/// All text files of the project.
const std::vector<SourceFile>& Tree() {
  static const std::vector<SourceFile> tree = [] {
    std::vector<SourceFile> files;
    for (auto entry = fs::recursive_directory_iterator(Root());
         entry != fs::recursive_directory_iterator(); ++entry) {
      if (kNotOurs.contains(entry->path().filename())) {
        entry.disable_recursion_pending();
      } else if (entry->is_regular_file()) {
        std::ifstream stream(entry->path(), std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
        if (bytes.find('\0') != std::string::npos) continue;  // no text
        SourceFile file{fs::relative(entry->path(), Root()).generic_string(), {}};
        std::istringstream text(bytes);
        for (std::string line; std::getline(text, line);) file.lines.push_back(line);
        files.push_back(std::move(file));
      }
    }
    return files;
  }();
  return tree;
}

/// Calls `visit(line, where)` for each line; `where` is FILE:LINE.
template <class Visit>
void ForEachLine(const SourceFile& file, Visit visit) {
  for (std::size_t i = 0; i < file.lines.size(); ++i) {
    visit(file.lines[i], fmt::format("{}:{}", file.path, i + 1));
  }
}

std::string WithoutPrefix(const std::string& path, std::string_view prefix) {
  return path.starts_with(prefix) ? path.substr(prefix.size()) : path;
}

bool Exists(const std::string& path) { return fs::exists(Root() / path); }

// Breaks: layers grow together, and a part can no longer be replaced or tested alone.
TEST(TidyTest, IncludesFollowTheArrows) {
  const std::regex include(R"(^\s*#\s*include "([^/"]+)/)");
  for (const SourceFile& file : Tree()) {
    const auto arrow = std::find_if(kArrows.begin(), kArrows.end(), [&](const Arrow& candidate) {
      return candidate.folder == file.folder();
    });
    if (arrow == kArrows.end() || !file.EndsWithOneOf(kCode)) continue;
    ForEachLine(file, [&](const std::string& line, const std::string& where) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) return;
      EXPECT_TRUE(arrow->targets.contains(match[1].str())) << where << ": " << line;
    });
  }
}

// Breaks: a library's types leak out of the one folder that knows it.
TEST(TidyTest, EachThingHasItsPlace) {
  for (const OnlyIn& rule : kOnlyIn) {
    const std::regex pattern(rule.pattern);
    for (const SourceFile& file : Tree()) {
      const std::string mirrored = WithoutPrefix(WithoutPrefix(file.path, "tests/"), "benchmarks/");
      const bool allowed =
          std::any_of(rule.allowed.begin(), rule.allowed.end(), [&](const std::string& place) {
            return file.path.starts_with(place) || mirrored.starts_with(place);
          });
      if (allowed || !file.EndsWithOneOf(rule.files)) continue;
      ForEachLine(file, [&](const std::string& line, const std::string& where) {
        if (line.find("NOLINT") != std::string::npos) return;
        EXPECT_FALSE(std::regex_search(line, pattern)) << where << ": " << line;
      });
    }
  }
}

// Breaks: an operation is fast and wrong, since nothing holds it to its specification.
TEST(TidyTest, OperationsHaveTestsAndReferences) {
  const std::regex operation(R"(^void RunOnCpu\()");
  const std::regex fast_form(R"(^(kernels/.*)_(sse|avx|amx|neon)\w*\.cc$)");
  for (const SourceFile& file : Tree()) {
    if (file.folder() != "kernels") continue;
    const std::string stem = file.path.substr(0, file.path.rfind('.'));
    if (file.path.ends_with(".h") && file.HasLineLike(operation)) {
      EXPECT_TRUE(Exists("tests/" + stem + "_test.cc")) << file.path << ":1: has no test";
    }
    std::smatch match;
    if (std::regex_match(file.path, match, fast_form)) {
      EXPECT_TRUE(Exists(match[1].str() + "_reference.cc")) << file.path << ":1: has no reference";
    }
  }
}

// Breaks: a file is compiled by nobody, or a header never alone.
TEST(TidyTest, BuildFilesListTheSources) {
  for (const SourceFile& file : Tree()) {
    const std::string folder = file.folder();
    const bool is_source = file.EndsWithOneOf(kCode);
    if (!is_source || folder == "tests" || folder == "benchmarks") continue;
    std::ifstream stream(Root() / folder / "CMakeLists.txt");
    const std::string list{std::istreambuf_iterator<char>(stream), {}};
    const std::string name = WithoutPrefix(file.path, folder + "/");
    const auto follows = [&](char before) { return list.find(before + name) != list.npos; };
    EXPECT_TRUE(follows(' ') || follows('\n') || follows('('))
        << file.path << ":1: is not in " << folder << "/CMakeLists.txt";
  }
}

// Breaks: names that say nothing collect what belongs elsewhere.
TEST(TidyTest, NamesAndFormKeepTheStyle) {
  const std::regex vague(R"((^|/|_)(util|utils|helper|helpers|common|manager|misc)\.\w+$)");
  for (const SourceFile& file : Tree()) {
    EXPECT_FALSE(std::regex_search(file.path, vague)) << file.path << ":1: says nothing";
    if (!file.EndsWithOneOf(kCode)) continue;
    ForEachLine(file, [](const std::string& line, const std::string& where) {
      const auto columns = std::count_if(line.begin(), line.end(), [](char byte) {
        return (static_cast<unsigned char>(byte) & 0xc0) != 0x80;  // not inside a UTF-8 sequence
      });
      EXPECT_LE(columns, 100) << where;
    });
    if (!file.path.ends_with(".h")) continue;
    std::string guard = "JUBAL_" + file.path + "_";
    std::transform(guard.begin(), guard.end(), guard.begin(), [](unsigned char c) {
      return static_cast<char>(std::isalnum(c) != 0 ? std::toupper(c) : '_');
    });
    for (const char* const directive : {"#ifndef ", "#define ", "#endif  // "}) {
      EXPECT_NE(std::find(file.lines.begin(), file.lines.end(), directive + guard),
                file.lines.end())
          << file.path << ":1: wants " << directive << guard;
    }
  }
}

// Breaks: the root fills up, and a newcomer cannot tell where to begin.
TEST(TidyTest, NothingElseLiesAtTheTop) {
  for (const fs::directory_entry& entry : fs::directory_iterator(Root())) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(kTopLevel.contains(name) || kNotOurs.contains(name)) << name << ": has no place";
  }
}

}  // namespace
}  // namespace jubal

#include "runtime/checkpoint/pickle.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/mapped_file.h"
#include "tests/runtime/checkpoint/ckpt0_writer.h"
#include "tests/runtime/checkpoint/expect_user_error.h"

namespace jubal {
namespace {

using namespace std::string_literals;  // NOLINT: pickles have zero bytes

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

PickledWeight Read(const std::string& file) { return ReadPickle(Bytes(file), "w"); }

template <class... Parts>
void ExpectRefused(const std::string& file, const Parts&... parts) {
  ExpectUserError(ExitStatus::kBadData, [&file] { Read(file); }, {"w: at byte ", parts...});
}

/// The promise to whoever reads an array: its bytes are in the file and fill its shape.
void ExpectInside(const StoredArray& array, std::size_t file_size) {
  EXPECT_LE(array.offset, file_size);
  EXPECT_LE(array.length, file_size - array.offset);
  EXPECT_EQ(StoredLength(array.shape, array.dtype), array.length);
  EXPECT_LE(array.shape.size(), kMaxStoredRank);
}

/// Reads a hostile file: it is refused or described consistently. True when it was accepted.
bool SurvivesReading(const std::string& file) {
  try {
    const PickledWeight read = Read(file);
    ExpectInside(read.weight, file.size());
    if (read.scales) ExpectInside(*read.scales, file.size());
    return true;
  } catch (const UserError& error) {
    EXPECT_EQ(static_cast<int>(error.status()), static_cast<int>(ExitStatus::kBadData));
    return false;
  }
}

std::string SmallQuantized() {
  return Ckpt0Writer({DType::kI8, {4, 6}}, WrittenArray{DType::kBf16, {2, 6}}).File();
}

/// The parts of a protocol 3 array, each open to change.
struct Parts {
  std::string proto = "\x80\x03";
  std::string reconstruct = "cnumpy.core.multiarray\n_reconstruct\nq\0"s;
  std::string reconstruct_arguments =
      "cnumpy\nndarray\nq\x01K\0\x85q\x02"
      "C\x01"
      "bq\x03\x87q\x04"s;
  std::string reduce = "Rq\x05";
  std::string version = "(K\x01";
  std::string shape = "K\x02\x85q\x06";
  std::string dtype = "cnumpy\ndtype\nq\x07";
  std::string dtype_arguments = "X\x02\0\0\0f4q\x08\x89\x88\x87q\tRq\n"s;
  std::string dtype_state =
      "(K\x03X\x01\0\0\0<q\x0bNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x0c"s;
  std::string dtype_build = "b";
  std::string order = "\x89";
  std::string payload =
      "C\x08"
      "abcdefghq\r";
  std::string end =
      "tq\x0e"
      "b.";

  std::string File() const {
    return proto + reconstruct + reconstruct_arguments + reduce + version + shape + dtype +
           dtype_arguments + dtype_state + dtype_build + order + payload + end;
  }
};

std::string Changed(const std::function<void(Parts&)>& change) {
  Parts parts;
  change(parts);
  return parts.File();
}

// A wrong offset here would serve the published 300 GB checkpoint with every weight shifted by some
// bytes. The overheads and offsets are those of the published files.
TEST(PickleTest, FollowsThePublishedFilesByteForByte) {
  struct Case {
    const char* name;
    WrittenArray weight;
    std::optional<WrittenArray> scales;
    std::size_t payload_at;
    std::size_t gap;
    std::size_t overhead;
  };
  const DType i8 = DType::kI8;
  const DType bf16 = DType::kBf16;
  const Case cases[] = {
      {"embedding", {DType::kF32, {131072, 6144}}, std::nullopt, 151, 0, 165},
      {"norm", {DType::kF32, {6144}}, std::nullopt, 146, 0, 151},
      {"router", {DType::kF32, {6144, 8}}, std::nullopt, 148, 0, 162},
      {"moe up", {i8, {8, 6144, 32768}}, WrittenArray{bf16, {8, 1, 32768}}, 201, 106, 323},
      {"moe down", {i8, {8, 32768, 6144}}, WrittenArray{bf16, {8, 8, 6144}}, 201, 106, 323},
      {"Wo", {i8, {6144, 6144}}, WrittenArray{bf16, {8, 6144}}, 199, 104, 319},
      {"Wq", {i8, {6144, 6144}}, WrittenArray{bf16, {1, 6144}}, 199, 104, 310},
      {"Wk", {i8, {6144, 1024}}, WrittenArray{bf16, {1, 1024}}, 199, 104, 310},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const Ckpt0Writer writer(c.weight, c.scales);
    std::size_t overhead = 0;
    for (const std::string& piece : writer.pieces()) overhead += piece.size();
    EXPECT_EQ(overhead, c.overhead);
    EXPECT_EQ(writer.pieces()[0].size(), c.payload_at);
    if (c.scales) {
      EXPECT_EQ(writer.pieces()[1].size(), c.gap);
    }

    const auto elements = StoredLength(c.weight.shape, DType::kI8);
    if (*elements > 10'000'000) continue;  // the layout is checked; do not fill gigabytes
    const std::string file = writer.File();
    const PickledWeight read = Read(file);
    EXPECT_EQ(read.weight.offset, c.payload_at);
    EXPECT_EQ(read.weight.shape, c.weight.shape);
    EXPECT_EQ(read.weight.dtype, c.weight.dtype);
    ASSERT_EQ(read.scales.has_value(), c.scales.has_value());
    if (!c.scales) continue;
    EXPECT_EQ(read.scales->offset, c.payload_at + read.weight.length + c.gap);
    EXPECT_EQ(read.scales->shape, c.scales->shape);
    EXPECT_EQ(read.scales->dtype, bf16);
  }
}

// Were these files refused or misread, so would be what real tools save.
TEST(PickleTest, ReadsFilesLikeThoseOfThePublishedCheckpoint) {
  const std::filesystem::path golden = std::filesystem::path(JUBAL_TEST_DATA) / "golden";
  int files = 0;
  for (const char* const model : {"grok1-12layers", "grok1-gqa6"}) {
    for (const auto& entry : std::filesystem::directory_iterator(golden / model / "ckpt-0")) {
      SCOPED_TRACE(entry.path().string());
      const MappedFile file(entry.path());
      const PickledWeight read = ReadPickle(file.bytes(), entry.path().string());
      ExpectInside(read.weight, file.bytes().size());
      std::optional<WrittenArray> scales;
      if (read.scales) {
        ExpectInside(*read.scales, file.bytes().size());
        EXPECT_EQ(read.weight.dtype, DType::kI8);
        EXPECT_EQ(read.scales->dtype, DType::kBf16);
        scales = WrittenArray{read.scales->dtype, read.scales->shape};
      }
      // The writer of these tests makes the same file: its layout is no invention.
      const Ckpt0Writer writer({read.weight.dtype, read.weight.shape}, scales);
      std::string around(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
      if (read.scales) around.erase(read.scales->offset, read.scales->length);
      around.erase(read.weight.offset, read.weight.length);
      std::string written;
      for (const std::string& piece : writer.pieces()) written += piece;
      EXPECT_EQ(around, written);
      ++files;
    }
  }
  EXPECT_GT(files, 146);  // 2 + 12 per layer, 12 layers in the first model
}

// Checkpoints that other Pythons and NumPys saved again would be refused.
TEST(PickleTest, ReadsOtherProtocolsAndNames) {
  const std::string plain = Parts().File();
  const PickledWeight read = Read(plain);
  EXPECT_EQ(read.weight.dtype, DType::kF32);
  EXPECT_EQ(read.weight.shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(plain.substr(read.weight.offset, read.weight.length), "abcdefgh");
  EXPECT_FALSE(read.scales.has_value());

  const std::string accepted[] = {
      Changed([](Parts& p) { p.proto = "\x80\x02"; }),
      Changed([](Parts& p) { p.proto = "\x80\x05"; }),
      Changed([](Parts& p) { p.reconstruct = "cnumpy._core.multiarray\n_reconstruct\n"; }),
      Changed([](Parts& p) { p.shape = "M\x02\0\x85"s; }),
      Changed([](Parts& p) { p.shape = "J\x02\0\0\0\x85"s; }),
      Changed([](Parts& p) { p.shape = "\x8a\x01\x02\x85"; }),
      Changed([](Parts& p) { p.shape = "K\x01r\x06\0\0\0j\x06\0\0\0K\x02\x87"s; }),
      Changed([](Parts& p) { p.shape = "(K\x01K\x01K\x01K\x02t"; }),
      Changed([](Parts& p) { p.order = "K\0"s; }),
      Changed([](Parts& p) { p.payload = "B\x08\0\0\0abcdefgh"s; }),
      Changed([](Parts& p) { p.payload = "\x8e\x08\0\0\0\0\0\0\0abcdefgh"s; }),
      Changed([](Parts& p) {
        p.shape = "K\0\x85"s;
        p.payload = "C\0"s;
      }),
      Changed([](Parts& p) {
        p.shape = ")";
        p.payload =
            "C\x04"
            "abcd";
      }),
  };
  for (const std::string& file : accepted) EXPECT_NO_THROW(Read(file)) << file;
  EXPECT_EQ(Read(accepted[5]).weight.shape, std::vector<std::int64_t>{2});

  std::string model = SmallQuantized();
  const std::size_t place = model.find("\x08__main__");
  model.replace(place, 9, "\x05model");
  EXPECT_TRUE(Read(model).scales.has_value());
}

// A downloaded checkpoint could run its author's code, or probe for what would.
TEST(PickleTest, RefusesToImportAnythingElse) {
  ExpectRefused("\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
                "at byte 16", "refuses to import \"os.system\"");
  ExpectRefused(
      "\x80\x03"
      "cos\nsystem\nX\x02\0\0\0id\x85R."s,
      "at byte 2", "\"os.system\"");
  const char* const names[] = {
      "posix\nsystem",
      "nt\nsystem",
      "builtins\neval",
      "builtins\nexec",
      "__builtin__\neval",
      "builtins\ngetattr",
      "subprocess\nPopen",
      "runpy\n_run_code",
      "importlib\nimport_module",
      "pickle\nloads",
      "operator\nattrgetter",
      "torch\nload",
      "numpy.testing._private.utils\nrunstring",
      "numpy\nload",
      "numpy\nmemmap",
      "numpy\nndarray.tofile",
      "numpy.core.multiarray\nfromfile",
      "_codecs\nencode",
      "copyreg\n_reconstructor",
      "__main__\nQuantizedWeight8bit.__init__",
      "__main__\nos",
      "numpy.core.multiarray\n_Reconstruct",
      "numpy \ndtype",
      "\n",
      "numpy\n",
  };
  for (const char* const name : names) {
    ExpectRefused(
        "\x80\x03"
        "c"s +
            name + "\n)R.",
        "refuses to import");
  }
  // Names of a file must not reach the terminal raw.
  ExpectRefused(
      "\x80\x03"
      "c\x1b[2Jx\ny\n.",
      R"(refuses to import "\x1b[2Jx.y")");
}

// An opcode that slips through could call, fetch or build what no check knows.
TEST(PickleTest, RefusesEveryOtherOpcode) {
  const std::string known =
      "().BCJKMNRXbchjqrstu}\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93\x94\x95"s;
  for (int opcode = 0; opcode < 256; ++opcode) {
    const bool expected = known.find(static_cast<char>(opcode)) != std::string::npos;
    const std::string file = "\x80\x04"s + static_cast<char>(opcode) + "\1\0\0\0\0\0\0\0\0\0"s;
    try {
      Read(file);
      ADD_FAILURE() << opcode << " makes a weight";
    } catch (const UserError& error) {
      const bool refused =
          std::string(error.what()).find("at byte 2 the pickle uses opcode") != std::string::npos;
      EXPECT_EQ(refused, !expected) << opcode << ": " << error.what();
    }
  }
  ExpectRefused(
      "\x80\x03i"
      "os\nsystem\n.",
      "at byte 2", "opcode 0x69 (INST)");
  ExpectRefused(
      "\x80\x03"
      "Pid\n.",
      "opcode 0x50 (PERSID)");
  ExpectRefused("\x80\x04\x97.", "opcode 0x97 (NEXT_BUFFER)");
  ExpectRefused("\x80\x04\x82\x01.", "opcode 0x82 (EXT1)");
  ExpectRefused("\x80\x04N\x80\x04.", "at byte 3", "opcode 0x80 (PROTO)");
}

// A file cut short by a full disk or a broken download would crash the server or load as noise.
TEST(PickleTest, RefusesEveryTruncation) {
  for (const std::string& file :
       {SmallQuantized(), Ckpt0Writer({DType::kF32, {3}}).File(), Parts().File()}) {
    for (std::size_t length = 0; length < file.size(); ++length) {
      EXPECT_THROW(Read(file.substr(0, length)), UserError) << length;
    }
  }
}

// A flipped bit on disk would crash the server or send it reading outside the file.
TEST(PickleTest, SurvivesEveryChangedByte) {
  for (const std::string& file : {SmallQuantized(), Parts().File()}) {
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
}

// Bytes lost or doubled inside the file must not shift what is read after them unseen.
TEST(PickleTest, SurvivesRemovedAndDoubledBytes) {
  const std::string file = SmallQuantized();
  for (std::size_t begin = 0; begin < file.size(); ++begin) {
    for (std::size_t length = 1; length <= 16 && begin + length <= file.size(); ++length) {
      std::string changed = file;
      SurvivesReading(changed.erase(begin, length));
      changed = file;
      SurvivesReading(changed.insert(begin, file.substr(begin, length)));
    }
  }
}

// Shapes that lie about the payload would make the loader read another tensor's bytes, or far
// outside the file.
TEST(PickleTest, RefusesShapesThatThePayloadDoesNotFill) {
  const auto with_shape = [](const std::string& shape) {
    return Changed([&shape](Parts& p) { p.shape = shape; });
  };
  ExpectRefused(with_shape("K\x03\x85"), "an array of [3] f32 has 8 bytes");
  ExpectRefused(with_shape("J\xfe\xff\xff\xff\x85"), "[-2] f32");
  ExpectRefused(with_shape("J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86"), "[-2, -1] f32");
  // 2^62 · 4 bytes is 0 modulo 2^64; (2^61 + 2) · 4 is 8 modulo 2^63.
  ExpectRefused(with_shape("\x8a\x08\0\0\0\0\0\0\0\x40\x85"s), "has 8 bytes");
  ExpectRefused(with_shape("\x8a\x08\x02\0\0\0\0\0\0\x20\x85"s), "has 8 bytes");
  ExpectRefused(with_shape("J\0\0\0\x40J\0\0\0\x40J\0\0\0\x40\x87"s), "has 8 bytes");
  ExpectRefused(with_shape("\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"), "has 8 bytes");
  ExpectRefused(with_shape("\x8a\x09\x02\0\0\0\0\0\0\0\0\x85"s), "an integer has 9 bytes");
  ExpectRefused(with_shape("(K\1K\1K\1K\1K\1K\1K\1K\1K\2t"), "9 dimensions");
  ExpectRefused(with_shape("\x88\x85"), "something else than integers");
  ExpectRefused(with_shape("K\x02"), "shape is not a tuple");
}

// A claimed length past the file's end would crash the server when the payload is read, and one
// that is believed could exhaust its memory at once.
TEST(PickleTest, RefusesLengthsPastTheEnd) {
  const std::string start = "\x80\x04";
  ExpectRefused(start + "B\xff\xff\xff\xffzz", "wants 4294967295 more bytes", "ends after 2");
  ExpectRefused(start + "\x8e\xff\xff\xff\xff\xff\xff\xff\xffzz", "wants 18446744073709551615");
  ExpectRefused(start + "\x8e\xff\xff\xff\xff\xff\xff\xff\x7fzz", "wants 9223372036854775807");
  ExpectRefused(start + "C\x03zz", "wants 3 more bytes");
  ExpectRefused(start + "X\xff\xff\xff\xffzz", "a string has 4294967295 bytes");
  ExpectRefused(start + "X\x01\x01\0\0"s + std::string(300, 'z'), "a string has 257 bytes");
  ExpectRefused(
      "\x80\x03"
      "c" +
          std::string(300, 'z'),
      "a string has 257 bytes");
  ExpectRefused(
      "\x80\x03"
      "cnumpy",
      "wants 1 more bytes");
}

// A small hostile file could take all memory or time, or crash by deep recursion.
TEST(PickleTest, BoundsStackMemoAndTime) {
  const std::string start = "\x80\x04";
  ExpectRefused(start + std::string(1000, '('), "at byte 66", "stack grows past 64");
  ExpectRefused(start + std::string(1000, ')'), "stack grows past 64");
  std::string nested = start + ")";
  for (int i = 0; i < 90'000; ++i) nested += "\x85";
  ExpectRefused(nested + ".", "without a complete array");
  ExpectRefused(start + ")" + std::string(200'000, '\x85'), "after 100000 opcodes");
  ExpectRefused(start + "N" + std::string(5000, '\x94'), "memo grows past 4096");
  ExpectRefused(start + "Nr\xff\xff\xff\xff.", "memo grows past 4096");
  ExpectRefused(start + "Nr\0\x10\0\0."s, "memo grows past 4096");
  ExpectRefused(start + "h\x07.", "memo has no value 7");
  ExpectRefused(start + "Nr\x09\0\0\0h\x07."s, "memo has no value 7");
  ExpectRefused(start + "Nj\xff\xff\xff\xff.", "memo has no value 4294967295");
  ExpectRefused(start + "(q\x01.", "needs a value");
  ExpectRefused(start + "q\x01.", "needs a value");
  // Doubling through the memo: 2^30 values if tuples were copied deeply.
  std::string doubling = start + ")q\0"s;
  for (int i = 0; i < 30; ++i) doubling += "h\0h\0\x86q\0"s;
  ExpectRefused(doubling + ".", "more than one value");
}

// A layout that NumPy means otherwise would load as noise.
TEST(PickleTest, RefusesOtherLayoutsAndTypes) {
  const auto refused = [](const std::string& part, const std::function<void(Parts&)>& change) {
    ExpectRefused(Changed(change), part);
  };
  refused("Fortran order", [](Parts& p) { p.order = "\x88"; });
  refused("Fortran order", [](Parts& p) { p.order = "N"; });
  refused("not little-endian", [](Parts& p) { p.dtype_state[p.dtype_state.find('<')] = '>'; });
  refused("not little-endian", [](Parts& p) { p.dtype_state[p.dtype_state.find('<')] = '|'; });
  for (const char* const code : {"f2", "f8", "i4", "i8", "u1", "O8", "V4", ">f"}) {
    refused(fmt::format("dtype \"{}\"", code),
            [code](Parts& p) { p.dtype_arguments.replace(p.dtype_arguments.find("f4"), 2, code); });
  }
  refused("neither a code nor", [](Parts& p) { p.dtype_arguments = "h\x01\x89\x88\x87R"; });
  refused("(type, False, True)", [](Parts& p) { p.dtype_arguments = "X\x02\0\0\0f4\x85R"s; });
  refused("(type, False, True)",
          [](Parts& p) { p.dtype_arguments = "X\x02\0\0\0f4\x88\x88\x87R"s; });
  refused("no complete dtype", [](Parts& p) { p.dtype_state = p.dtype_build = ""; });
  refused("tuple of 8", [](Parts& p) { p.dtype_state = "K\x03\x85"; });
  refused("fields or a subarray",
          [](Parts& p) { p.dtype_state.replace(p.dtype_state.find("NNN"), 3, "N)N"); });
  refused("built twice", [](Parts& p) { p.dtype_build = "b" + p.dtype_state + "b"; });
  refused("not version 1's tuple of 5", [](Parts& p) { p.version = "(K\x02"; });
  refused("elements are not bytes", [](Parts& p) { p.payload = "X\x08\0\0\0abcdefgh"s; });
  refused("_reconstruct has other arguments", [](Parts& p) { p.reconstruct_arguments = ")"; });
  refused("_reconstruct has other arguments", [](Parts& p) {
    p.reconstruct_arguments.replace(p.reconstruct_arguments.find("K\0"s), 2, "K\x05");
  });
  refused("calls something else", [](Parts& p) { p.reconstruct = "cnumpy\nndarray\n"; });
  refused("something to call", [](Parts& p) { p.reconstruct = "N"; });
  refused("state to something that has none", [](Parts& p) { p.end = "t\x85)b."; });
}

// What follows the weight, or comes beside it, would be data that nobody looked at.
TEST(PickleTest, RefusesMoreOrLessThanOneWeight) {
  const std::string file = Parts().File();
  ExpectRefused(file + "\0"s, "1 more bytes follow");
  ExpectRefused(file + file, "more bytes follow");
  ExpectRefused(Changed([](Parts& p) { p.proto = "\x80\x03N"; }), "more than one value");
  ExpectRefused("\x80\x04.", "needs a value");
  ExpectRefused("\x80\x04N.", "without a complete array");
  ExpectRefused(Changed([](Parts& p) { p.version = ".("; }), "more bytes follow");
  ExpectRefused("", "does not start like a Python pickle");
  ExpectRefused("PK\x03\x04", "does not start like a Python pickle");
  ExpectRefused("\x80\x01.", "protocol 1");
  ExpectRefused("\x80\x06.", "protocol 6");
}

// A quantised weight without its scales, or with two sets, would be served wrong.
TEST(PickleTest, RefusesIncompleteQuantisedWeights) {
  const std::string pair =
      "\x80\x04"
      "c__main__\nQuantizedWeight8bit\n)\x81";
  ExpectRefused(pair + ".", "without a complete array");
  ExpectRefused(pair + "}b.", "lacks its weight or its scales");
  ExpectRefused(pair + "Nb.", "state is not a dict");
  ExpectRefused(pair + "}X\x04\0\0\0nameNs."s, "key \"name\"");
  ExpectRefused(pair + "}NNs.", "key is not a string");
  ExpectRefused(pair + "}X\x06\0\0\0weightNs."s, "value of weight is not a complete array");
  ExpectRefused(pair + "}(NNNu.", "key without a value");
  ExpectRefused(pair + "NNNs.", "needs a dict");
  ExpectRefused(pair + "(N\x81.", "needs a tuple");
  ExpectRefused(
      "\x80\x04"
      "c__main__\nQuantizedWeight8bit\nN\x85\x81.",
      "another object than");
  ExpectRefused(
      "\x80\x04"
      "cnumpy\nndarray\n)\x81.",
      "another object than");

  std::string twice = SmallQuantized();
  twice.replace(twice.find("scales"), 6, "weight");
  ExpectRefused(twice, "two values for weight");
}

}  // namespace
}  // namespace jubal

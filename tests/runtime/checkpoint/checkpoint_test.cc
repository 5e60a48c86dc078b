#include "runtime/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/runtime/checkpoint/ckpt0_writer.h"
#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/safetensors_file.h"
#include "tests/runtime/checkpoint/scratch_directory.h"

namespace jubal {
namespace {

std::string Plain() { return Ckpt0Writer({DType::kF32, {3}}).File(); }

std::string Quantized() {
  return Ckpt0Writer({DType::kI8, {2, 3}}, WrittenArray{DType::kBf16, {1, 3}}).File();
}

std::string Shard(const std::string& tensor) {
  return SafetensorsFile("{\"" + tensor + R"(":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}})",
                         4);
}

void ExpectRefused(const std::filesystem::path& directory, ExitStatus status,
                   const std::vector<std::string>& parts) {
  ExpectUserError(
      status, [&directory] { Checkpoint::Open(directory); }, parts);
}

// xAI's download is a directory like this; without it Grok-1 cannot be served.
TEST(CheckpointTest, OpensCkpt0) {
  const ScratchDirectory scratch;
  scratch.Write("ckpt-0/tensor00000_000", Plain());
  scratch.Write("ckpt-0/tensor00001_000", Quantized());
  scratch.Write("ckpt-0/README.md", "not a weight");
  scratch.Write("ckpt-0/tensor1_000", "not a weight");
  scratch.Write("ckpt-0/tensor00002_000.part", "not a weight");
  scratch.Write("ckpt-0/tensor0000x_000", "not a weight");
  scratch.Write("tokenizer.model", "not a weight");
  for (const std::filesystem::path& directory : {scratch.path(), scratch.path() / "ckpt-0"}) {
    const Checkpoint checkpoint = Checkpoint::Open(directory);
    EXPECT_EQ(checkpoint.format(), CheckpointFormat::kCkpt0);
    EXPECT_EQ(checkpoint.directory(), directory);
    EXPECT_EQ(checkpoint.bytes(), 12U + 6U + 6U);
    ASSERT_EQ(checkpoint.tensors().size(), 3U);
    EXPECT_EQ(checkpoint.tensors()[0].name, "tensor00000_000");
    EXPECT_EQ(checkpoint.tensors()[1].name, "tensor00001_000");
    EXPECT_EQ(checkpoint.tensors()[2].name, "tensor00001_000/scales");

    const StoredTensor* const scales = checkpoint.Find("tensor00001_000/scales");
    ASSERT_NE(scales, nullptr);
    EXPECT_EQ(scales->dtype, DType::kBf16);
    EXPECT_EQ(scales->shape, (std::vector<std::int64_t>{1, 3}));
    ASSERT_EQ(scales->bytes().size(), 6U);
    EXPECT_EQ(scales->bytes()[0], std::byte{1});
    EXPECT_EQ(scales->bytes()[5], std::byte{6});
    EXPECT_EQ(checkpoint.Find("tensor00000_000/scales"), nullptr);
    EXPECT_EQ(checkpoint.Find(""), nullptr);
  }
}

// The model of every end-to-end test; 12 layers of 12 files, and the first two.
TEST(CheckpointTest, OpensTheGoldenModel) {
  const auto golden = std::filesystem::path(JUBAL_TEST_DATA) / "golden/grok1-12layers";
  const Checkpoint checkpoint = Checkpoint::Open(golden);
  EXPECT_EQ(checkpoint.format(), CheckpointFormat::kCkpt0);
  EXPECT_EQ(checkpoint.tensors().size(), 2U + 12 * (12 + 7));
  const StoredTensor* const embedding = checkpoint.Find("tensor00000_000");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->shape, (std::vector<std::int64_t>{256, 64}));
  EXPECT_NE(checkpoint.Find("tensor00145_000"), nullptr);
  EXPECT_EQ(checkpoint.Find("tensor00146_000"), nullptr);
}

// Every larger Hugging Face model comes in shards.
TEST(CheckpointTest, OpensEveryShard) {
  const ScratchDirectory scratch;
  scratch.Write("model-00002-of-00002.safetensors", Shard("a"));
  scratch.Write("model-00001-of-00002.safetensors", Shard("b"));
  scratch.Write("model.safetensors.index.json", "{}");
  scratch.Write("config.json", "{}");
  Checkpoint opened = Checkpoint::Open(scratch.path());
  const StoredTensor* const a = opened.Find("a");
  const Checkpoint checkpoint = std::move(opened);
  EXPECT_EQ(checkpoint.format(), CheckpointFormat::kSafetensors);
  ASSERT_EQ(checkpoint.tensors().size(), 2U);
  EXPECT_EQ(checkpoint.tensors()[0].name, "b");
  EXPECT_EQ(checkpoint.Find("a"), a);
  EXPECT_EQ(a->file->path().filename(), "model-00002-of-00002.safetensors");
  EXPECT_EQ(checkpoint.bytes(), 8U);
}

// A tensor outlives the checkpoint that found it: its file must stay mapped.
TEST(CheckpointTest, TensorsOutliveTheCheckpoint) {
  const ScratchDirectory scratch;
  scratch.Write("ckpt-0/tensor00000_000", Plain());
  std::optional<Checkpoint> checkpoint = Checkpoint::Open(scratch.path());
  const StoredTensor tensor = checkpoint->tensors()[0];
  checkpoint.reset();
  EXPECT_EQ(tensor.bytes()[11], std::byte{12});
}

// The user must learn which file to fetch again: the checkpoint has 770.
TEST(CheckpointTest, NamesTheFileThatIsMissingOrWrong) {
  const ScratchDirectory scratch;
  scratch.Write("tensor00000_000", Plain());
  scratch.Write("tensor00002_000", Plain());
  ExpectRefused(scratch.path(), ExitStatus::kNoInput, {"tensor00001_000: missing"});
  scratch.Write("tensor00001_000", Plain() + "x");
  ExpectRefused(scratch.path(), ExitStatus::kBadData, {"tensor00001_000: at byte", "follow"});
  scratch.Write("tensor00001_000", "");
  ExpectRefused(scratch.path(), ExitStatus::kBadData, {"tensor00001_000: at byte 0"});
  std::filesystem::remove(scratch.path() / "tensor00001_000");
  std::filesystem::create_directory(scratch.path() / "tensor00001_000");
  ExpectRefused(scratch.path(), ExitStatus::kNoInput, {"tensor00001_000: cannot be read"});
}

// A checkpoint without its first file must not load shifted by one.
TEST(CheckpointTest, RefusesNumberingThatDoesNotStartAtZero) {
  const ScratchDirectory scratch;
  scratch.Write("ckpt-0/tensor00001_000", Plain());
  ExpectRefused(scratch.path(), ExitStatus::kNoInput, {"ckpt-0/tensor00000_000: missing"});
}

// Half of a tensor would be taken for all of it.
TEST(CheckpointTest, RefusesACheckpointOfSeveralHosts) {
  const ScratchDirectory scratch;
  scratch.Write("ckpt-0/tensor00000_000", Plain());
  scratch.Write("ckpt-0/tensor00000_001", Plain());
  ExpectRefused(scratch.path(), ExitStatus::kBadData, {"tensor00000_001", "single-host"});
}

// Test vectors and other formats beside the weights must not be taken for weights, and which of two
// sets is served must not be a guess: the documented order decides.
TEST(CheckpointTest, PrefersTheDocumentedSetOfWeights) {
  const ScratchDirectory scratch;
  scratch.Write("reference.safetensors", Shard("other"));
  EXPECT_NE(Checkpoint::Open(scratch.path()).Find("other"), nullptr);
  scratch.Write("model.safetensors", Shard("a"));
  EXPECT_EQ(Checkpoint::Open(scratch.path()).Find("other"), nullptr);
  EXPECT_NE(Checkpoint::Open(scratch.path()).Find("a"), nullptr);
  scratch.Write("tensor00000_000", Plain());
  EXPECT_EQ(Checkpoint::Open(scratch.path()).format(), CheckpointFormat::kCkpt0);
  scratch.Write("tensor00001_000", Plain());
  EXPECT_EQ(Checkpoint::Open(scratch.path()).tensors().size(), 2u);
  scratch.Write("ckpt-0/tensor00000_000", Plain());
  EXPECT_EQ(Checkpoint::Open(scratch.path()).tensors().size(), 1u);
}

// Which of two tensors of one name is served must not be a guess either.
TEST(CheckpointTest, RefusesATensorInTwoShards) {
  const ScratchDirectory scratch;
  scratch.Write("1.safetensors", Shard("a"));
  scratch.Write("2.safetensors", Shard("a"));
  ExpectRefused(scratch.path(), ExitStatus::kBadData,
                {"2.safetensors: tensor \"a\" is also in 1.safetensors"});
  scratch.Write("2.safetensors", "damaged");
  ExpectRefused(scratch.path(), ExitStatus::kBadData, {"2.safetensors: "});
}

// A mistyped path is the commonest mistake: it must be named with what was looked for.
TEST(CheckpointTest, SaysWhereItLookedInVain) {
  const ScratchDirectory scratch;
  ExpectRefused(scratch.path(), ExitStatus::kNoInput,
                {scratch.path().string(), "ckpt-0/tensor00000_000", "*.safetensors"});
  const std::filesystem::path absent = scratch.path() / "absent";
  ExpectRefused(absent, ExitStatus::kNoInput, {absent.string(), "No such file"});
  ExpectRefused(scratch.Write("file", ""), ExitStatus::kNoInput, {"file", "Not a directory"});
}

}  // namespace
}  // namespace jubal

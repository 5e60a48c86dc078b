#include "runtime/pack_writer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/local_communicator.h"
#include "runtime/checkpoint/pack_file.h"
#include "tests/runtime/checkpoint/expect_user_error.h"
#include "tests/runtime/checkpoint/scratch_directory.h"
#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace jubal {
namespace {

namespace fs = std::filesystem;

void PackInto(const fs::path& model, std::optional<WeightType> type, const fs::path& directory) {
  WritePack(ModelSource::Open(model), type, directory, [](std::int64_t, std::int64_t) {});
}

std::string Bytes(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void Overwrite(const fs::path& file, std::size_t place, const std::string& bytes) {
  std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
  stream.seekp(static_cast<std::streamoff>(place));
  stream << bytes;
}

std::set<std::string> Names(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.insert(entry.path().filename());
  return names;
}

/// A greedy and a drawn generation and a scored prompt.
std::vector<GenerationRequest> Requests() {
  std::vector<GenerationRequest> requests;
  for (int r = 0; r < 3; ++r) {
    GenerationRequest request;
    for (int i = 0; i < 5 + 9 * r; ++i) request.prompt.push_back(1 + (i * 37 + r * 11) % 150);
    request.sampling.temperature = r == 1 ? 0.9f : 0.0f;
    request.sampling.seed = 7;
    request.max_tokens = r == 2 ? 0 : 6;
    request.prompt_logprobs = r == 2;
    requests.push_back(request);
  }
  return requests;
}

class PackedGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  fs::path Model() const { return GoldenDirectory() / GetParam(); }
};

// If this fails, packing a model changes its answers.
TEST_P(PackedGoldenTest, GivesTheBitsOfTheCheckpointOnEveryPlan) {
  const ScratchDirectory scratch;
  PackInto(Model(), {}, scratch.path());
  const std::vector<GenerationRequest> requests = Requests();
  const std::vector<Generated> expected = Generate(Model(), {}, {}, requests);
  std::vector<TestPlan> plans;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    plans.push_back({.ranks = ranks});
    plans.push_back({.ranks = ranks, .exchange = Exchange::kAllToAll});
  }
  plans.push_back({.ranks = 4, .expert_parallel = 2});
  plans.push_back(
      {.ranks = 6, .exchange = Exchange::kAllToAll, .expert_parallel = 3, .data_parallel = 2});
  for (const TestPlan& plan : plans) {
    EXPECT_TRUE(Generate(scratch.path(), plan, {}, requests) == expected) << plan.ToString();
  }
}

// If this fails, ranks that share a quantised model give different answers by their number.
TEST_P(PackedGoldenTest, QuantisedGivesTheSameBitsOnEveryPlan) {
  const std::vector<GenerationRequest> requests = Requests();
  for (const WeightType type : {WeightType::kBf16, WeightType::kInt8, WeightType::kInt4}) {
    SCOPED_TRACE(std::string(NameOf(type)));
    const ScratchDirectory scratch;
    PackInto(Model(), type, scratch.path());
    const std::vector<Generated> expected = Generate(scratch.path(), {}, {}, requests);
    for (const TestPlan& plan :
         {TestPlan{.ranks = 3}, TestPlan{.ranks = 8, .exchange = Exchange::kAllToAll}}) {
      EXPECT_TRUE(Generate(scratch.path(), plan, {}, requests) == expected) << plan.ToString();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PackedGoldenTest,
                         testing::Values("grok1-12layers", "grok1-gqa6", "mixtral"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

/// Mean log probability of the scored prompt of Requests().
double Score(const fs::path& model) {
  const std::vector<Generated> results = Generate(model, {}, {}, {Requests()[2]});
  double sum = 0;
  for (const float logprob : results[0].prompt_logprobs) sum += logprob;
  return sum / static_cast<double>(results[0].prompt_logprobs.size());
}

// A model rounded to 8 bits is nearly the same model; to 4 bits, still one. Wrong scales or levels
// would make noise of it.
TEST(PackWriterTest, QuantisedModelsStayCloseToTheirOrigin) {
  const double exact = Score(DemoModel());
  const auto packed = [](WeightType type) {
    const ScratchDirectory scratch;
    PackInto(DemoModel(), type, scratch.path());
    return Score(scratch.path());
  };
  EXPECT_NEAR(packed(WeightType::kBf16), exact, 0.01);
  EXPECT_NEAR(packed(WeightType::kInt8), exact, 0.02);
  const double int4 = packed(WeightType::kInt4);
  EXPECT_NE(int4, exact);
  EXPECT_NEAR(int4, exact, 0.3);
}

// If this fails, the flag does not do what its help says.
TEST(PackWriterTest, RoundsWhatHasMoreBits) {
  using enum WeightType;
  const std::vector<WeightSpec> list = ListWeights(ModelSource::Open(DemoModel()).model());
  const auto spec = [&](WeightRole role) {
    return *std::find_if(list.begin(), list.end(), [&](const auto& s) { return s.role == role; });
  };
  const WeightSpec embedding = spec(WeightRole::kEmbedding);
  const WeightSpec query = spec(WeightRole::kQuery);
  const WeightSpec down = spec(WeightRole::kExpertDown);
  const WeightSpec router = spec(WeightRole::kRouter);
  const WeightSpec norm = spec(WeightRole::kMoeNorm);
  const WeightFormat f32{kF32, 0};
  const WeightFormat bf16{kBf16, 0};
  const WeightFormat int8{kInt8, 100};
  const WeightFormat int4{kInt4, 64};
  for (const std::optional<WeightType> type :
       std::vector<std::optional<WeightType>>{{}, kBf16, kInt8, kInt4}) {
    for (const WeightFormat& stored : {f32, bf16}) {
      EXPECT_EQ(PackedFormat(router, stored, type), stored);
      EXPECT_EQ(PackedFormat(norm, stored, type), f32);
    }
  }
  for (const WeightFormat& stored : {f32, bf16, int8}) {
    EXPECT_EQ(PackedFormat(query, stored, {}), stored);
    EXPECT_EQ(PackedFormat(query, stored, kBf16), stored == int8 ? int8 : bf16);
    EXPECT_EQ(PackedFormat(query, stored, kInt4), int4);
  }
  EXPECT_EQ(PackedFormat(query, int8, kInt8), int8);
  EXPECT_EQ(PackedFormat(query, bf16, kInt8), (WeightFormat{kInt8, query.k}));
  EXPECT_EQ(PackedFormat(down, f32, kInt8), (WeightFormat{kInt8, down.k / 8}));
  EXPECT_EQ(PackedFormat(embedding, f32, kInt4), (WeightFormat{kInt8, embedding.k}));
}

// Two people who pack the same model must get the same file, to compare its checksum.
TEST(PackWriterTest, ThreadsDoNotShow) {
#ifdef _OPENMP
  for (const std::optional<WeightType> type :
       std::vector<std::optional<WeightType>>{{}, WeightType::kInt8, WeightType::kInt4}) {
    const ScratchDirectory scratch;
    const int before = omp_get_max_threads();
    for (const int threads : {1, 2, 5}) {
      omp_set_num_threads(threads);
      PackInto(GoldenDirectory() / "grok1-gqa6", type, scratch.path() / std::to_string(threads));
    }
    omp_set_num_threads(before);
    const std::string one = Bytes(scratch.path() / "1" / kPackFileName);
    EXPECT_GT(one.size(), 4096u);
    EXPECT_TRUE(Bytes(scratch.path() / "2" / kPackFileName) == one);
    EXPECT_TRUE(Bytes(scratch.path() / "5" / kPackFileName) == one);
  }
#endif
}

// The new directory must serve text, too, and nothing half-written may lie about.
TEST(PackWriterTest, MakesACompleteModelDirectory) {
  const ScratchDirectory scratch;
  std::int64_t last = 0;
  std::int64_t all = 0;
  WritePack(ModelSource::Open(DemoModel()), {}, scratch.path() / "a" / "b",
            [&](std::int64_t done, std::int64_t total) {
              EXPECT_LE(last, done);
              last = done;
              all = total;
            });
  EXPECT_EQ(Names(scratch.path() / "a" / "b"),
            (std::set<std::string>{"config.json", "tokenizer.model", "weights.jubalpack"}));
  const ModelSource packed = ModelSource::Open(scratch.path() / "a" / "b");
  EXPECT_EQ(last, all);
  EXPECT_EQ(packed.stored_bytes(), all);
  EXPECT_TRUE(packed.tokenizer().has_value());
  EXPECT_EQ(packed.model().hidden, 256);
  VerifyPack(packed.pack(), 2, [](std::int64_t, std::int64_t) {});
}

// A pack over a pack, or another model's config.json beside it, would cost the user a model.
TEST(PackWriterTest, OverwritesNothing) {
  const fs::path model = GoldenDirectory() / "grok1-gqa6";
  const ScratchDirectory scratch;
  PackInto(model, {}, scratch.path());
  ExpectUserError(ExitStatus::kUsage, [&] { PackInto(model, {}, scratch.path()); },
                  {"weights.jubalpack is there already"});
  ExpectUserError(ExitStatus::kUsage,
                  [&] { PackInto(scratch.path(), {}, scratch.path() / "again"); },
                  {"is packed already"});
  const ScratchDirectory other;
  other.Write("config.json", "{}");
  ExpectUserError(ExitStatus::kUsage, [&] { PackInto(model, {}, other.path()); },
                  {"config.json is there already"});
  const ScratchDirectory tokenizer;  // the model has none
  tokenizer.Write("tokenizer.model", "x");
  ExpectUserError(ExitStatus::kUsage, [&] { PackInto(model, {}, tokenizer.path()); },
                  {"tokenizer.model is there already"});
  // The same file is no obstacle: an earlier attempt was interrupted.
  const ScratchDirectory same;
  fs::copy(model / "config.json", same.path());
  same.Write("weights.jubalpack.partial", "half of an earlier pack");
  PackInto(model, {}, same.path());
  EXPECT_EQ(Names(same.path()), (std::set<std::string>{"config.json", "weights.jubalpack"}));
}

// Who has no disk for two directories packs into the first.
TEST(PackWriterTest, PacksIntoTheModelsOwnDirectory) {
  const ScratchDirectory scratch;
  fs::copy(GoldenDirectory() / "grok1-gqa6", scratch.path(), fs::copy_options::recursive);
  EXPECT_FALSE(ModelSource::Open(scratch.path()).packed());
  PackInto(scratch.path(), {}, scratch.path());
  EXPECT_TRUE(ModelSource::Open(scratch.path()).packed());
}

// What fails half-way must not look like a model.
TEST(PackWriterTest, LeavesNothingThatLooksCompleteOnFailure) {
  const ScratchDirectory scratch;
  fs::copy(GoldenDirectory() / "grok1-gqa6", scratch.path() / "model", fs::copy_options::recursive);
  const ModelSource source = ModelSource::Open(scratch.path() / "model");
  ASSERT_EQ(source.weights().back().role, WeightRole::kFinalNorm);
  const StoredTensor& last = *source.files(source.weights().size() - 1).tensors.front();
  Overwrite(last.file->path(), last.offset + 8, std::string("\x00\x00\xc0\x7f", 4));  // NaN
  ExpectUserError(ExitStatus::kBadData,
                  [&] { PackInto(scratch.path() / "model", {}, scratch.path() / "packed"); },
                  {"tensor00001_000", "holds a value that is not finite"});
  EXPECT_EQ(Names(scratch.path() / "packed"), std::set<std::string>{"config.json"});
}

TEST(PackWriterTest, NamesADirectoryThatCannotBeMade) {
  const ScratchDirectory scratch;
  scratch.Write("file", "");
  ExpectUserError(
      ExitStatus::kIoError,
      [&] { PackInto(GoldenDirectory() / "grok1-gqa6", {}, scratch.path() / "file" / "packed"); },
      {"file/packed"});
}

// A pack beside another model's config.json would be served as that model.
TEST(PackWriterTest, PackOfAnotherModelIsRefused) {
  const ScratchDirectory scratch;
  PackInto(GoldenDirectory() / "grok1-gqa6", {}, scratch.path());
  const auto with_config = [&](const std::string& from, const std::string& to) {
    std::string config = Bytes(GoldenDirectory() / "grok1-gqa6" / "config.json");
    const std::size_t place = config.find(from);
    ASSERT_NE(place, std::string::npos) << config;
    config.replace(place, from.size(), to);
    scratch.Write("config.json", config);
    ExpectUserError(ExitStatus::kBadData, [&] { ModelSource::Open(scratch.path()); },
                    {"weights.jubalpack", "another model than config.json's"});
  };
  const ModelDescription model = ModelSource::Open(GoldenDirectory() / "grok1-gqa6").model();
  with_config(fmt::format("\"num_hidden_layers\": {}", model.layers),
              fmt::format("\"num_hidden_layers\": {}", model.layers + 1));
  with_config(fmt::format("\"num_hidden_layers\": {}", model.layers),
              fmt::format("\"num_hidden_layers\": {}", model.layers - 1));
  with_config(fmt::format("\"vocab_size\": {}", model.vocabulary),
              fmt::format("\"vocab_size\": {}", model.vocabulary - 1));
}

/// A pack's weights, changed, as a file of the same length of data.
std::string Rewritten(const fs::path& file, const std::function<void(PackedWeight&)>& change) {
  const std::string bytes = Bytes(file);
  std::vector<PackedWeight> weights =
      ReadPackHeader(std::as_bytes(std::span(bytes)), file.string());
  const std::uint64_t begin = weights.front().data.offset;
  for (PackedWeight& weight : weights) {
    weight.data.offset -= begin;
    weight.scales.offset -= HasScales(weight.type) ? begin : 0;
    change(weight);
  }
  return PackHeader(weights, bytes.size() - begin) + bytes.substr(begin);
}

// A hostile or broken packer must not reach the kernels.
TEST(PackWriterTest, WeightsThatNoKernelTakesAreRefused) {
  const ScratchDirectory scratch;
  PackInto(GoldenDirectory() / "mixtral", {}, scratch.path());
  const fs::path file = scratch.path() / kPackFileName;
  const std::string good = Bytes(file);
  EXPECT_EQ(Rewritten(file, [](PackedWeight&) {}), good);
  const auto refused = [&](const std::string& name,
                           const std::function<void(PackedWeight&)>& change,
                           const std::string& why) {
    bool found = false;
    const std::string bad = Rewritten(file, [&](PackedWeight& weight) {
      if (weight.name != name) return;
      found = true;
      change(weight);
    });
    ASSERT_TRUE(found);
    const ScratchDirectory other;
    fs::copy(scratch.path() / "config.json", other.path());
    other.Write(std::string(kPackFileName), bad);
    ExpectUserError(ExitStatus::kBadData, [&] { ModelSource::Open(other.path()); },
                    {"weights.jubalpack", name, why});
  };
  const auto cut = [](PackedWeight& weight) { weight.data.bytes -= 64; };
  refused("embedding", cut, "expected");
  refused(
      "final_norm", [](PackedWeight& weight) { weight.type = WeightType::kBf16; },
      "final_norm is bf16, which is not served");
  refused(
      "layer 0 key", [](PackedWeight& weight) { weight.type = WeightType::kBf16; }, "expected");
  refused(
      "embedding",
      [](PackedWeight& weight) {
        weight.type = WeightType::kInt4;
        weight.group_rows = 64;
        weight.scales.offset = weight.data.offset + weight.data.bytes;
      },
      "embedding is int4, which is not served");
}

// The budget that is printed must not count what ranks share as each rank's own.
TEST(PackWriterTest, MappedWeightsTakeNoMemoryOfTheRanks) {
  const fs::path model = GoldenDirectory() / "grok1-gqa6";
  const ScratchDirectory scratch;
  PackInto(model, {}, scratch.path());
  const ModelSource loaded = ModelSource::Open(model);
  const ModelSource packed = ModelSource::Open(scratch.path());
  for (const int ranks : {1, 3, 8}) {
    const ParallelPlan plan = MakePlan(ranks, 8, Exchange::kReplicated, {}, 1);
    for (int rank = 0; rank < ranks; ++rank) {
      const MemoryPlan a = PlanMemory(loaded, plan, SeatOf(plan, rank), {});
      const MemoryPlan b = PlanMemory(packed, plan, SeatOf(plan, rank), {});
      EXPECT_EQ(a.total(), b.total());
      EXPECT_EQ(a.own(), a.total());
      EXPECT_EQ(b.own(), b.kv_bytes + b.activation_bytes + b.segment_bytes);
    }
  }
  std::int64_t from_disk = -1;
  std::int64_t total = 0;
  const auto world = [] { return std::move(MakeLocalWorld(1).front()); };
  const Mesh mesh = MakeMesh(MakePlan(1, 8, Exchange::kReplicated, {}, 1), world());
  const Decoder decoder(packed, mesh, {}, [&](const LoadState& state) {
    total = state.total;
    if (state.done == state.total) from_disk = state.from_disk.value();
  });
  EXPECT_EQ(total, packed.stored_bytes());
  EXPECT_GE(from_disk, 0);
  EXPECT_LE(from_disk, total);
}

// A stray write must end the process at the place of the bug, not change the answers of all ranks.
TEST(PackWriterDeathTest, MappedWeightsCannotBeWritten) {
  const ScratchDirectory scratch;
  PackInto(GoldenDirectory() / "grok1-gqa6", {}, scratch.path());
  const Pack pack = Pack::Open(scratch.path() / kPackFileName);
  EXPECT_DEATH(const_cast<std::byte&>(pack.bytes(pack.weights[0].data)[0]) = std::byte{1}, "");
}

}  // namespace
}  // namespace jubal

#include "launch/options.h"

#include <string>
#include <vector>

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"

namespace jubal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Arguments = std::vector<std::string>;

struct Refusal {
  Arguments arguments;
  std::string message;  // a part of it
};

class RefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, IsOneSentenceThatNamesTheCulprit) {
  try {
    ParseCommandLine(GetParam().arguments);
    FAIL() << "taken: " << fmt::format("{}", fmt::join(GetParam().arguments, " "));
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUsage);
    EXPECT_THAT(error.what(), HasSubstr(GetParam().message));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

Refusal Generate(const std::string& flag, const std::string& value, const std::string& message) {
  return {{"generate", "--model", "m", "--prompt", "x", flag, value}, message};
}

Refusal Bench(const std::string& flag, const std::string& value, const std::string& message) {
  return {{"bench", flag, value}, message};
}

INSTANTIATE_TEST_SUITE_P(
    Commands, RefusalTest,
    ::testing::Values(
        Refusal{{}, "a command is missing"},
        Refusal{{"genrate"}, "there is no command 'genrate': did you mean generate?"},
        Refusal{{"xyzzy"}, "there is no command 'xyzzy': see jubal help"},
        Refusal{{"help", "xyzzy"}, "there is no command 'xyzzy'"},
        Refusal{{"help", "plan", "score"}, "one command at a time"},
        Refusal{{"generate", "--prompt", "x"}, "needs --model"},
        Refusal{{"generate", "--model", ""}, "--model is empty"},
        Refusal{{"generate", "--model", "m"}, "needs --prompt or --prompt-ids"},
        Refusal{{"generate", "--model", "m", "--prompt", "x", "--prompt-ids", "1"}, "exclude"},
        Refusal{{"score", "--model", "m"}, "needs --text-file or --ids"},
        Refusal{{"score", "--model", "m", "--text-file", "f", "--ids", "1,2"}, "exclude"},
        Refusal{{"rank", "--model", "m"}, "needs --coordinator"},
        Refusal{{"coordinator", "--model", "m"}, "started by jubal serve"},
        Refusal{{"serve", "-n", "2"}, "needs --model"},
        Refusal{{"bench"}, "needs --model or --synthetic"},
        Refusal{{"bench", "--model", "m", "--synthetic", "layers=2"}, "exclude"},
        Refusal{{"bench", "--model", "m", "--weights", "int8"}, "--weights goes with --synthetic"},
        Refusal{{"bench", "--model", "m", "--prefill", "0", "--decode", "0"}, "nothing to measure"},
        Refusal{{"bench", "--model", "m", "--json", "--csv"}, "exclude"},
        Refusal{{"bench", "--model", "m", "--kv-memory", "1GB"}, "has no flag --kv-memory"},
        Refusal{{"plan", "model"}, "unexpected argument 'model'"},
        Refusal{{"pack", "--output", "d"}, "needs --model"},
        Refusal{{"pack", "--model", "m"}, "needs --output"},
        Refusal{{"pack", "--model", "m", "--output", "d", "--weights", "f16"},
                "--weights is 'f16': give bf16, int8 or int4"},
        Refusal{{"plan", "--model", "m", "--verify"}, "jubal plan has no flag --verify"},
        Refusal{{"version", "--verbose"}, "unknown flag --verbose"}));

INSTANTIATE_TEST_SUITE_P(
    Flags, RefusalTest,
    ::testing::Values(
        Refusal{{"generate", "--frobnicate"}, "unknown flag --frobnicate: see jubal help generate"},
        Refusal{{"generate", "--temprature", "1"}, "did you mean --temperature?"},
        Refusal{{"generate", "--temp", "1"}, "unknown flag --temp"},  // no prefixes
        Refusal{{"generate", "--model", "m", "-x"}, "unknown flag -x"},
        Refusal{{"generate", "--listen", "h:1"}, "jubal generate has no flag --listen"},
        Refusal{{"score", "--temperature=0"}, "jubal score has no flag --temperature"},
        Refusal{{"generate", "--model"}, "--model"}, Refusal{{"generate", "--json=1"}, "--json"},
        Refusal{{"generate", "--model", "a", "--model", "b"}, "--model is given twice"},
        Generate("--temperature", "nan", "--temperature is 'nan'"),
        Generate("--temperature", "inf", "--temperature is 'inf'"),
        Generate("--temperature", "1e99", "--temperature is '1e99'"),
        Generate("--temperature", "0.5x", "--temperature is '0.5x'"),
        Generate("--temperature", "", "--temperature is ''"),
        Generate("--top-k", "-1", "--top-k is '-1'"),
        Generate("--top-k", "1.5", "--top-k is '1.5'"),
        Generate("--max-tokens", "0", "--max-tokens is '0'"),
        Generate("--max-tokens", "99999999999999999999", "--max-tokens is"),
        Generate("--seed", "-1", "--seed is '-1'"),
        Generate("--seed", "18446744073709551616", "--seed is"),
        Generate("--stop", "", "--stop is empty"),
        Generate("--prompt-ids", "", "--prompt-ids is ''"),
        Generate("--prompt-ids", "1,,2", "--prompt-ids is ''"),
        Generate("--prompt-ids", "1,2,", "--prompt-ids is '1,2,'"),
        Generate("--prompt-ids", "1, 2", "--prompt-ids is ' 2'"),
        Generate("--prompt-ids", "-1", "--prompt-ids is '-1'"),
        Generate("--threads", "0", "--threads is '0'"),
        Generate("--prefill-chunk", "0", "--prefill-chunk is '0'"),
        Generate("--max-running", "0", "--max-running is '0'"),
        Generate("--kv-memory", "4 GB", "--kv-memory is '4 GB'"),
        Generate("--kv-memory", "0", "--kv-memory is '0'"),
        Generate("--kv", "f64", "--kv is 'f64'"),
        Generate("--exchange", "ring", "--exchange is 'ring'"),
        Generate("--expert-parallel", "0", "--expert-parallel is '0'"),
        Generate("--data-parallel", "two", "--data-parallel is 'two'"),
        Refusal{{"serve", "--model", "m", "--listen", "50051"}, "--listen is '50051'"},
        Refusal{{"serve", "--model", "m", "--listen", ":50051"}, "--listen is ':50051'"},
        Refusal{{"serve", "--model", "m", "--listen", "h:"}, "--listen is 'h:'"},
        Refusal{{"serve", "--model", "m", "--listen", "h:65536"}, "--listen is 'h:65536'"},
        Refusal{{"serve", "--model", "m", "--listen", "h:-1"}, "--listen is 'h:-1'"},
        Generate("--device", "gpu", "--device is 'gpu': give cpu or cuda"),
        Generate("--isa", "sse9", "--isa is 'sse9': the best that this CPU has is"),
        Bench("--batch", "0", "--batch is '0'"), Bench("--batch", "1,", "--batch is '1,'"),
        Bench("--batch", "1,16385", "--batch is '16385'"),
        Bench("--depth", "-1", "--depth is '-1'"), Bench("--depth", "", "--depth is ''"),
        Bench("--prefill", "x", "--prefill is 'x'"), Bench("--decode", "-1", "--decode is '-1'"),
        Bench("--scaling", "1,0", "--scaling is '0'"),
        Bench("--weights", "f64", "--weights is 'f64'"),
        Bench("--synthetic", "", "--synthetic is ''"),
        Bench("--synthetic", "layers=2,", "--synthetic is 'layers=2,'"),
        Bench("--synthetic", "layers", "--synthetic has 'layers': give KEY=NUMBER"),
        Bench("--synthetic", "layer=2", "--synthetic has 'layer=2'"),
        Bench("--synthetic", "layers=0", "--synthetic layers is '0'"),
        Bench("--synthetic", "layers=99999", "--synthetic layers is '99999'"),
        Bench("--synthetic", "layers=2,layers=2", "--synthetic has layers twice"),
        Refusal{{"plan", "--model", "m", "-n", "0"}, "-n is '0'"},
        Refusal{{"plan", "--model", "m", "-n", "1025"}, "-n is '1025'"},
        Refusal{{"plan", "--model", "m", "--device-memory", "80G"}, "--device-memory is '80G'"}));

TEST(OptionsTest, ReadsAGeneration) {
  const Options o = ParseCommandLine(Arguments{"generate",
                                               "--model=dir",
                                               "--prompt-ids",
                                               "5,17,3",
                                               "--max-tokens",
                                               "7",
                                               "--temperature",
                                               "0.25",
                                               "--top-p",
                                               "0.5",
                                               "--top-k",
                                               "40",
                                               "--min-p",
                                               "0.1",
                                               "--presence-penalty",
                                               "-1",
                                               "--frequency-penalty",
                                               "0.5",
                                               "--repetition-penalty",
                                               "1.5",
                                               "--seed",
                                               "18446744073709551615",
                                               "--stop",
                                               "a",
                                               "--stop",
                                               "b",
                                               "--ignore-eos",
                                               "--json",
                                               "--kv",
                                               "int8",
                                               "--kv-memory",
                                               "4GiB",
                                               "--threads",
                                               "3",
                                               "--exchange",
                                               "alltoall",
                                               "--expert-parallel",
                                               "2",
                                               "--data-parallel",
                                               "2",
                                               "--prefill-chunk",
                                               "8",
                                               "--max-running",
                                               "9"});
  EXPECT_EQ(o.command, Command::kGenerate);
  EXPECT_EQ(o.model, "dir");
  EXPECT_THAT(o.prompt_ids.value(), ElementsAre(5, 17, 3));
  EXPECT_EQ(o.max_tokens, 7);
  EXPECT_EQ(o.sampling.temperature, 0.25f);
  EXPECT_EQ(o.sampling.top_p, 0.5f);
  EXPECT_EQ(o.sampling.top_k, 40);
  EXPECT_EQ(o.sampling.min_p, 0.1f);
  EXPECT_EQ(o.sampling.presence_penalty, -1.0f);
  EXPECT_EQ(o.sampling.frequency_penalty, 0.5f);
  EXPECT_EQ(o.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(o.sampling.seed, ~std::uint64_t{0});
  EXPECT_THAT(o.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(o.ignore_eos);
  EXPECT_TRUE(o.json);
  EXPECT_EQ(o.serving.kv_type, KvType::kInt8);
  EXPECT_EQ(o.serving.kv_memory, std::int64_t{4} << 30);
  EXPECT_EQ(o.serving.prefill_chunk, 8);
  EXPECT_EQ(o.serving.max_running, 9);
  EXPECT_EQ(o.threads, 3);
  EXPECT_EQ(o.exchange, Exchange::kAllToAll);
  EXPECT_EQ(o.expert_parallel, 2);
  EXPECT_EQ(o.data_parallel, 2);
}

TEST(OptionsTest, ReadsWhatPackWillMake) {
  const Options o = ParseCommandLine(Arguments{"pack", "--model", "m", "--output", "d"});
  EXPECT_EQ(o.output, "d");
  EXPECT_FALSE(o.weights);
  const Options int4 = ParseCommandLine(
      Arguments{"pack", "--model", "m", "--output", "d", "--weights", "int4", "--threads", "2"});
  EXPECT_EQ(int4.weights, WeightType::kInt4);
  EXPECT_EQ(int4.threads, 2);
}

TEST(OptionsTest, LeavesDefaultsToTheModelAndTheServer) {
  const Options o = ParseCommandLine(Arguments{"chat"});
  EXPECT_EQ(o.server, "127.0.0.1:50051");
  EXPECT_FALSE(o.max_tokens || o.sampling.temperature || o.sampling.seed);
  EXPECT_EQ(ParseCommandLine(Arguments{"serve", "--model", "m"}).listen, o.server);
}

TEST(OptionsTest, APromptMayBeginLikeAFlag) {
  EXPECT_EQ(ParseCommandLine(Arguments{"generate", "--model", "m", "--prompt=--model"}).prompt,
            "--model");
  EXPECT_EQ(ParseCommandLine(Arguments{"generate", "--model", "m", "--prompt", "-5"}).prompt, "-5");
}

TEST(OptionsTest, PassesOnToRanksWhatTheyNeed) {
  const Options o =
      ParseCommandLine(Arguments{"serve", "--model", "m", "-n", "4", "--listen", "127.0.0.1:0",
                                 "--kv", "f32", "--prefill-chunk=3", "--mpirun-arg", "--mca"});
  EXPECT_EQ(o.ranks, 4);
  EXPECT_THAT(o.mpirun_arguments, ElementsAre("--mca"));
  EXPECT_THAT(o.rank_arguments, ElementsAre("--model=m", "--kv=f32", "--prefill-chunk=3"));
  Arguments rank{"rank", "--coordinator=c"};
  rank.insert(rank.end(), o.rank_arguments.begin(), o.rank_arguments.end());
  EXPECT_EQ(ParseCommandLine(rank).serving.prefill_chunk, 3);
}

TEST(OptionsTest, ReadsABenchmark) {
  const Options o = ParseCommandLine(Arguments{"bench",
                                               "--synthetic",
                                               "hidden=64,vocab=300",
                                               "--weights",
                                               "bf16",
                                               "--batch",
                                               "1,2,4",
                                               "--depth=0,4096",
                                               "--prefill",
                                               "0",
                                               "--decode",
                                               "16",
                                               "--isa",
                                               "portable",
                                               "--threads",
                                               "4",
                                               "--scaling",
                                               "1,2",
                                               "--kv",
                                               "f32",
                                               "--csv"});
  ASSERT_TRUE(o.bench.synthetic.has_value());
  EXPECT_EQ(o.bench.synthetic->hidden, 64);
  EXPECT_EQ(o.bench.synthetic->vocabulary, 300);
  EXPECT_EQ(o.bench.synthetic->experts, 8);
  EXPECT_EQ(o.weights, WeightType::kBf16);
  EXPECT_THAT(o.bench.batches, ElementsAre(1, 2, 4));
  EXPECT_THAT(o.bench.depths, ElementsAre(0, 4096));
  EXPECT_EQ(o.bench.prefill, 0);
  EXPECT_EQ(o.bench.decode, 16);
  EXPECT_EQ(o.isa, CpuIsa::kPortable);
  EXPECT_THAT(o.bench.scaling, ElementsAre(1, 2));
  EXPECT_TRUE(o.bench.csv);
  // The threads are divided, and the lines are for this process to print.
  EXPECT_THAT(o.rank_arguments,
              ElementsAre("--synthetic=hidden=64,vocab=300", "--weights=bf16", "--batch=1,2,4",
                          "--depth=0,4096", "--prefill=0", "--decode=16", "--isa=portable",
                          "--threads=4", "--kv=f32"));
}

TEST(OptionsTest, HelpNeedsNothingElse) {
  EXPECT_THAT(ParseCommandLine(Arguments{"--help"}).help, HasSubstr("serve"));
  for (const char* name :
       {"serve", "rank", "generate", "score", "bench", "chat", "inspect", "plan", "pack"}) {
    const Options o = ParseCommandLine(Arguments{name, "--help"});
    EXPECT_EQ(o.command, Command::kHelp);
    EXPECT_THAT(o.help, HasSubstr(fmt::format("jubal {} ", name)));
    EXPECT_EQ(o.help, ParseCommandLine(Arguments{"help", name}).help);
  }
  EXPECT_EQ(ParseCommandLine(Arguments{"--version"}).command, Command::kVersion);
}

}  // namespace
}  // namespace jubal

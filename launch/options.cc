#include "launch/options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <sstream>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <boost/program_options/errors.hpp>
#include <boost/program_options/options_description.hpp>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/value_semantic.hpp>

#include "kernels/error.h"
#include "launch/memory_size.h"

namespace jubal {
namespace {

namespace po = boost::program_options;

[[noreturn]] void Refuse(const std::string& message) {
  throw UserError(ExitStatus::kUsage, message);
}

/// What was given for one flag.
struct Value {
  std::string flag;  // "--seed"
  std::string text;

  template <class Integer>
  Integer Int(Integer low, Integer high) const {
    Integer number{};
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || rest != end || number < low || number > high) {
      Refuse(fmt::format("{} is '{}': give a whole number from {} to {}", flag, text, low, high));
    }
    return number;
  }

  float Real() const {
    float number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || rest != end || !std::isfinite(number)) {
      Refuse(fmt::format("{} is '{}': give a finite number", flag, text));
    }
    return number;
  }

  std::int64_t Size() const {
    const std::optional<std::int64_t> bytes = ParseMemorySize(text);
    if (!bytes || *bytes < 1) {
      Refuse(fmt::format("{} is '{}': give a size such as 80GB, 4GiB, 512MB or bytes", flag, text));
    }
    return *bytes;
  }

  /// `example` is what to give, for the message about a list that is empty or has no end.
  template <class Integer>
  std::vector<Integer> List(Integer low, Integer high, const char* example) const {
    std::vector<Integer> numbers;
    std::istringstream items(text);
    for (std::string item; std::getline(items, item, ',');) {
      numbers.push_back(Value{flag, item}.Int<Integer>(low, high));
    }
    if (numbers.empty() || text.back() == ',') {
      Refuse(fmt::format("{} is '{}': give {}", flag, text, example));
    }
    return numbers;
  }

  std::vector<TokenId> Ids() const {
    return List<TokenId>(0, std::numeric_limits<TokenId>::max(), "token ids such as 5,17,3");
  }

  CpuIsa Isa() const {
    std::vector<std::string_view> tiers;
    for (int i = 0; i <= static_cast<int>(BestCpuIsa()); ++i) {
      tiers.push_back(NameOf(static_cast<CpuIsa>(i)));
      if (text == tiers.back()) return static_cast<CpuIsa>(i);
    }
    Refuse(fmt::format("{} is '{}': the best that this CPU has is {}; give {}", flag, text,
                       tiers.back(), fmt::join(tiers, " or ")));
  }

  SyntheticShape Shape() const {
    struct Key {
      std::string_view name;
      std::int64_t SyntheticShape::*member;
      std::int64_t high;
    };
    // Bounds far above any model: with them no sum of bytes overflows.
    static constexpr std::array kKeys{Key{"hidden", &SyntheticShape::hidden, 1 << 16},
                                      Key{"heads", &SyntheticShape::heads, 1 << 10},
                                      Key{"kv_heads", &SyntheticShape::kv_heads, 1 << 10},
                                      Key{"head_dim", &SyntheticShape::head_dim, 1 << 8},
                                      Key{"experts", &SyntheticShape::experts, 1 << 10},
                                      Key{"top_k", &SyntheticShape::top_k, 1 << 10},
                                      Key{"expert_hidden", &SyntheticShape::expert_hidden, 1 << 20},
                                      Key{"layers", &SyntheticShape::layers, 1 << 10},
                                      Key{"vocab", &SyntheticShape::vocabulary, 1 << 20}};
    SyntheticShape shape;
    std::set<std::string> given;
    std::istringstream items(text);
    for (std::string item; std::getline(items, item, ',');) {
      const std::size_t equals = std::min(item.find('='), item.size());
      const std::string name = item.substr(0, equals);
      const auto key = std::find_if(kKeys.begin(), kKeys.end(),
                                    [&](const Key& candidate) { return candidate.name == name; });
      if (key == kKeys.end() || equals == item.size()) {
        std::string names;
        for (const Key& known : kKeys) names += fmt::format(" {}", known.name);
        Refuse(fmt::format("{} has '{}': give KEY=NUMBER,... with the keys{}", flag, item, names));
      }
      if (!given.insert(name).second) Refuse(fmt::format("{} has {} twice", flag, name));
      shape.*key->member =
          Value{fmt::format("{} {}", flag, name), item.substr(equals + 1)}.Int<std::int64_t>(
              1, key->high);
    }
    if (given.empty() || text.back() == ',') {
      Refuse(fmt::format("{} is '{}': give KEY=NUMBER,...", flag, text));
    }
    return shape;
  }

  const std::string& Address() const {
    const std::size_t colon = text.rfind(':');
    std::uint16_t port = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] =
        std::from_chars(colon == std::string::npos ? end : text.data() + colon + 1, end, port);
    if (colon == 0 || error != std::errc() || rest != end) {
      Refuse(fmt::format("{} is '{}': give HOST:PORT, such as 127.0.0.1:50051", flag, text));
    }
    return text;
  }

  const std::string& Text() const {
    if (text.empty()) Refuse(fmt::format("{} is empty", flag));
    return text;
  }
};

constexpr unsigned In(Command command) { return 1u << static_cast<unsigned>(command); }

constexpr unsigned kLocal = In(Command::kGenerate) | In(Command::kScore);  // need no server
constexpr unsigned kServing = In(Command::kServe) | In(Command::kRank);
constexpr unsigned kTables = In(Command::kPlan) | In(Command::kInspect);
constexpr unsigned kSampling = In(Command::kGenerate) | In(Command::kChat);
constexpr unsigned kServed = kLocal | kServing | kTables;  // know the load by flags alone
constexpr unsigned kEngine = kLocal | kServing | In(Command::kBench);
constexpr unsigned kPlanned = kEngine | kTables;
constexpr unsigned kModel = kPlanned | In(Command::kPack) | In(Command::kCoordinator);
constexpr unsigned kAll = kModel | kSampling;

struct Flag {
  const char* name;   // one letter: -n; more: --name
  const char* value;  // what it takes, for the help; null: nothing
  unsigned commands;
  const char* help;
  void (*set)(Options&, const Value&);
  bool repeatable = false;

  bool one_letter() const { return name[1] == '\0'; }
  std::string Spelling() const { return fmt::format("{}{}", one_letter() ? "-" : "--", name); }
};

constexpr int kMaxRanks = 1024;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 24;
constexpr std::int64_t kMaxRunning = 1 << 14;

/// Every flag of every command.
constexpr std::array kFlags{
    Flag{"model", "DIR", kModel,
         "directory with weights.jubalpack, ckpt-0/ or *.safetensors, perhaps config.json and "
         "tokenizer.model; plan and inspect also know the name grok-1",
         [](Options& o, const Value& v) { o.model = v.Text(); }},
    Flag{"output", "DIR", In(Command::kPack), "the new model directory",
         [](Options& o, const Value& v) { o.output = v.Text(); }},
    Flag{"weights", "TYPE", In(Command::kPack) | In(Command::kBench),
         "bf16, int8 or int4: what matrices of more bits become (pack; default: all stay as they "
         "are), or how those of --synthetic are stored (bench; default int8)",
         [](Options& o, const Value& v) {
           constexpr std::array kTypes{WeightType::kBf16, WeightType::kInt8, WeightType::kInt4};
           const auto* const type = std::find_if(kTypes.begin(), kTypes.end(),
                                                 [&](WeightType t) { return NameOf(t) == v.text; });
           if (type == kTypes.end()) {
             Refuse(fmt::format("{} is '{}': give bf16, int8 or int4", v.flag, v.text));
           }
           o.weights = *type;
         }},
    Flag{"n", "RANKS", In(Command::kServe) | kTables | In(Command::kCoordinator),
         "number of ranks (default 1)",
         [](Options& o, const Value& v) { o.ranks = v.Int(1, kMaxRanks); }},
    Flag{"listen", "HOST:PORT", In(Command::kServe) | In(Command::kCoordinator),
         "where clients connect (default 127.0.0.1:50051); port 0 takes a free one",
         [](Options& o, const Value& v) { o.listen = v.Address(); }},
    Flag{"insecure", nullptr, In(Command::kServe),
         "let --listen name an address that other hosts reach: anyone there can use the server, "
         "unencrypted",
         [](Options& o, const Value&) { o.insecure = true; }},
    Flag{"hostfile", "FILE", In(Command::kServe),
         "hosts to run ranks on, as mpirun reads it (default: this host)",
         [](Options& o, const Value& v) { o.hostfile = v.Text(); }},
    Flag{"control-host", "ADDRESS", In(Command::kServe),
         "with --hostfile: address of this host at which ranks reach it (default: the first that "
         "is not loopback)",
         [](Options& o, const Value& v) { o.control_host = v.Text(); }},
    Flag{"mpirun-arg", "ARG", In(Command::kServe),
         "one more argument for mpirun, such as --mpirun-arg=--mca; may be repeated",
         [](Options& o, const Value& v) { o.mpirun_arguments.push_back(v.Text()); }, true},

    Flag{"prompt", "TEXT", In(Command::kGenerate), "text to continue",
         [](Options& o, const Value& v) { o.prompt = v.text; }},
    Flag{"prompt-ids", "IDS", In(Command::kGenerate),
         "token ids to continue, such as 5,17,3; taken as they are",
         [](Options& o, const Value& v) { o.prompt_ids = v.Ids(); }},
    Flag{"text-file", "FILE", In(Command::kScore), "text to score",
         [](Options& o, const Value& v) { o.text_file = v.Text(); }},
    Flag{"ids", "IDS", In(Command::kScore), "token ids to score, such as 5,17,3",
         [](Options& o, const Value& v) { o.ids = v.Ids(); }},
    Flag{"server", "HOST:PORT", In(Command::kChat), "a running server (default 127.0.0.1:50051)",
         [](Options& o, const Value& v) { o.server = v.Text(); }},

    Flag{"synthetic", "SHAPE", In(Command::kBench),
         "measure a model of Grok-1's family with random weights and this shape: KEY=NUMBER,... "
         "with the keys above",
         [](Options& o, const Value& v) { o.bench.synthetic = v.Shape(); }},
    Flag{"prefill", "N", In(Command::kBench),
         "tokens of the prompt of test ppN (default 512; 0 leaves the test out)",
         [](Options& o, const Value& v) { o.bench.prefill = v.Int<std::int64_t>(0, kMaxTokens); }},
    Flag{"decode", "N", In(Command::kBench),
         "steps of test tgN, each of one token for every sequence (default 32; 0 leaves the test "
         "out)",
         [](Options& o, const Value& v) { o.bench.decode = v.Int<std::int64_t>(0, 1 << 16); }},
    Flag{"batch", "LIST", In(Command::kBench),
         "sequences that tgN decodes at once (default 1,8,16)",
         [](Options& o, const Value& v) {
           o.bench.batches = v.List<std::int64_t>(1, kMaxRunning, "numbers such as 1,8,16");
         }},
    Flag{"depth", "LIST", In(Command::kBench),
         "tokens that every sequence has before the test (default 0)",
         [](Options& o, const Value& v) {
           o.bench.depths = v.List<std::int64_t>(0, kMaxTokens, "numbers such as 0,4096");
         }},
    Flag{"scaling", "LIST", In(Command::kBench),
         "start the ranks with mpirun, once for each number in the list, and compare",
         [](Options& o, const Value& v) {
           o.bench.scaling = v.List<int>(1, kMaxRanks, "numbers of ranks such as 1,2,4");
         }},

    Flag{"max-tokens", "N", kSampling,
         "most tokens to generate (default 256, or what the context leaves)",
         [](Options& o, const Value& v) { o.max_tokens = v.Int<std::int64_t>(1, kMaxTokens); }},
    Flag{"temperature", "T", kSampling, "0 takes the likeliest token each time (default 1)",
         [](Options& o, const Value& v) { o.sampling.temperature = v.Real(); }},
    Flag{"top-p", "P", kSampling,
         "draw from the likeliest tokens that together have probability P (default 1)",
         [](Options& o, const Value& v) { o.sampling.top_p = v.Real(); }},
    Flag{"top-k", "K", kSampling, "draw from the K likeliest tokens (default 0: from all)",
         [](Options& o, const Value& v) {
           o.sampling.top_k = v.Int<std::int32_t>(0, std::numeric_limits<std::int32_t>::max());
         }},
    Flag{"min-p", "P", kSampling,
         "draw from tokens at least P times as likely as the likeliest (default 0)",
         [](Options& o, const Value& v) { o.sampling.min_p = v.Real(); }},
    Flag{"presence-penalty", "X", kSampling,
         "lower the logit of each token generated before, by X (default 0)",
         [](Options& o, const Value& v) { o.sampling.presence_penalty = v.Real(); }},
    Flag{"frequency-penalty", "X", kSampling,
         "lower the logit of each token generated before, by X each time (default 0)",
         [](Options& o, const Value& v) { o.sampling.frequency_penalty = v.Real(); }},
    Flag{"repetition-penalty", "X", kSampling,
         "divide the logit of each token seen before by X, or multiply it if negative (default 1)",
         [](Options& o, const Value& v) { o.sampling.repetition_penalty = v.Real(); }},
    Flag{"seed", "N", kSampling,
         "the same seed, prompt and flags give the same tokens (default: a random one, printed)",
         [](Options& o, const Value& v) {
           o.sampling.seed = v.Int<std::uint64_t>(0, std::numeric_limits<std::uint64_t>::max());
         }},
    Flag{"stop", "TEXT", kSampling, "end before this text; may be repeated",
         [](Options& o, const Value& v) { o.stop.push_back(v.Text()); }, true},
    Flag{"ignore-eos", nullptr, kSampling, "go on after an end-of-text token",
         [](Options& o, const Value&) { o.ignore_eos = true; }},

    Flag{"kv-memory", "SIZE", kServed,
         "most memory for keys and values on each rank (default 1GiB)",
         [](Options& o, const Value& v) { o.serving.kv_memory = v.Size(); }},
    Flag{"kv", "TYPE", kPlanned, "how keys and values are kept: f32, f16 or int8 (default f16)",
         [](Options& o, const Value& v) {
           if (v.text == "f32") {
             o.serving.kv_type = KvType::kF32;
           } else if (v.text == "f16") {
             o.serving.kv_type = KvType::kInt16;
           } else if (v.text == "int8") {
             o.serving.kv_type = KvType::kInt8;
           } else {
             Refuse(fmt::format("{} is '{}': give f32, f16 or int8", v.flag, v.text));
           }
         }},
    Flag{"prefill-chunk", "N", kServed,
         "most tokens of one prompt computed in one step (default 256)",
         [](Options& o, const Value& v) {
           o.serving.prefill_chunk = v.Int<std::int64_t>(1, 1 << 16);
         }},
    Flag{"max-running", "N", kServed, "most requests computed at the same time (default 32)",
         [](Options& o, const Value& v) {
           o.serving.max_running = v.Int<std::int64_t>(1, kMaxRunning);
         }},
    Flag{"exchange", "FORM", kPlanned,
         "how tokens meet their experts: replicated or alltoall (default replicated)",
         [](Options& o, const Value& v) {
           if (v.text != "replicated" && v.text != "alltoall") {
             Refuse(fmt::format("{} is '{}': give replicated or alltoall", v.flag, v.text));
           }
           o.exchange = v.text == "alltoall" ? Exchange::kAllToAll : Exchange::kReplicated;
         }},
    Flag{"expert-parallel", "E", kPlanned,
         "groups of ranks with different experts (default 1; with alltoall the most that divides "
         "the ranks)",
         [](Options& o, const Value& v) { o.expert_parallel = v.Int(1, kMaxRanks); }},
    Flag{"data-parallel", "D", kPlanned,
         "copies of the attention layers, each with its own requests (default 1)",
         [](Options& o, const Value& v) { o.data_parallel = v.Int(1, kMaxRanks); }},
    Flag{"threads", "T", kEngine | In(Command::kPack),
         "threads of each rank (default: the host's cores shared among its ranks)",
         [](Options& o, const Value& v) { o.threads = v.Int(1, 1024); }},
    Flag{"isa", "TIER", kEngine,
         "instruction set to compute with: portable, avx2 or avx512 (default: the best one that "
         "all ranks have)",
         [](Options& o, const Value& v) { o.isa = v.Isa(); }},
    Flag{
        "device", "DEVICE", kEngine | In(Command::kPlan),
        "what computes: cpu, or cuda for a GPU on each rank (default: GPUs if there are any; plan: "
        "cpu)",
        [](Options& o, const Value& v) {
          if (v.text != "cpu" && v.text != "cuda") {
            Refuse(fmt::format("{} is '{}': give cpu or cuda", v.flag, v.text));
          }
          o.device = v.text == "cuda" ? Device::kCuda : Device::kCpu;
          o.serving.device = *o.device;
        }},
    Flag{"device-memory", "SIZE", In(Command::kPlan),
         "memory of each rank: exit with status 78 if the model does not fit",
         [](Options& o, const Value& v) { o.device_memory = v.Size(); }},
    Flag{"verify", nullptr, In(Command::kInspect),
         "read all of a packed model and hold it against its checksums",
         [](Options& o, const Value&) { o.verify = true; }},
    Flag{"csv", nullptr, In(Command::kBench), "print comma-separated values",
         [](Options& o, const Value&) { o.bench.csv = true; }},
    Flag{"json", nullptr, kLocal | kTables | In(Command::kBench),
         "print JSON, and nothing else, on standard output",
         [](Options& o, const Value&) { o.json = true; }},

    Flag{"coordinator", "ADDRESS", In(Command::kRank),
         "the coordinator's control address: HOST:PORT, with the token in JUBAL_CONTROL_TOKEN, or "
         "a socket's path",
         [](Options& o, const Value& v) { o.coordinator = v.Text(); }},
    Flag{"epoch", "N", In(Command::kRank), "number of this MPI job (default 1)",
         [](Options& o, const Value& v) { o.epoch = v.Int<std::uint32_t>(1, 1u << 31); }},
    Flag{"control", "ADDRESS", In(Command::kCoordinator), "where ranks connect",
         [](Options& o, const Value& v) { o.control = v.Text(); }},
    Flag{"supervisor-fd", "FD", In(Command::kCoordinator), "socket to the supervisor",
         [](Options& o, const Value& v) { o.supervisor_fd = v.Int(0, 1 << 20); }},
    Flag{"help", nullptr, kAll, "print this",
         [](Options& o, const Value&) { o.command = Command::kHelp; }},
};

struct CommandText {
  Command command;
  std::string_view name;
  std::string_view usage;
  std::string_view summary;
  std::string_view detail;
};

constexpr std::array kCommands{
    CommandText{Command::kServe, "serve", "jubal serve --model DIR -n RANKS [flags]",
                "serve a model over gRPC",
                "Starts RANKS ranks with mpirun and a gRPC server in front of them. When all ranks "
                "are\nwarm, prints one line with 'ready' and the address. SIGINT or SIGTERM ends "
                "it after the\nopen requests; a second one at once. When a rank dies, the ranks "
                "are started again.\n\n"
                "  jubal serve --model /models/grok-1 -n 8\n"
                "  jubal serve --model /models/grok-1 -n 16 --data-parallel 2 --hostfile hosts\n"},
    CommandText{
        Command::kGenerate, "generate",
        "[mpirun -n RANKS] jubal generate --model DIR (--prompt TEXT | --prompt-ids IDS) "
        "[flags]",
        "continue a prompt, without a server",
        "Prints the text as it comes. Under mpirun the ranks share the model.\n\n"
        "  jubal generate --model /models/demo --prompt 'Once upon a time' --max-tokens 50\n"
        "  mpirun -n 8 jubal generate --model /models/grok-1 --prompt-ids 5,17,3 "
        "--temperature 0 --json\n"},
    CommandText{Command::kScore, "score",
                "[mpirun -n RANKS] jubal score --model DIR (--text-file FILE | --ids IDS) [flags]",
                "log probability of each token of a text",
                "Prints the text's perplexity; with --json also the natural logarithm of each "
                "token's\nprobability given those before it.\n\n"
                "  jubal score --model /models/demo --text-file book.txt\n"
                "  mpirun -n 4 jubal score --model /models/demo --ids 5,17,3 --json\n"},
    CommandText{
        Command::kBench, "bench",
        "[mpirun -n RANKS] jubal bench (--model DIR | --synthetic SHAPE) [flags]",
        "speed of a model on this machine, beside the machine's limits",
        "Times ppN, a prompt of N tokens, and tgN, N steps that add a token to each sequence of a\n"
        "batch, and prints a table in Markdown. Every line has the bytes that a step must move\n"
        "(weights it touches once, keys and values), their share of the bandwidth at which the\n"
        "ranks just read memory, and the share that the operations asked for (2 for each weight\n"
        "that a token meets) have of the peak of arithmetic. docs/benchmarks.md explains more.\n\n"
        "What a synthetic SHAPE leaves out is as in\n"
        "  hidden=3072,heads=24,kv_heads=8,head_dim=128,experts=8,top_k=2,expert_hidden=8192,"
        "layers=8,vocab=32768\n\n"
        "  jubal bench --synthetic layers=8 --batch 1,8\n"
        "  mpirun -n 8 jubal bench --model /models/grok-1 --depth 0,4096 --csv\n"
        "  jubal bench --synthetic layers=4,experts=16 --scaling 1,2,4 --json\n"},
    CommandText{Command::kChat, "chat", "jubal chat [--server HOST:PORT] [flags]",
                "write a text together with a served model",
                "The model continues what you type; each line joins the text so far. Ctrl-C stops "
                "the\nmodel, Ctrl-D leaves, /reset begins a new text, /help explains.\n\n"
                "  jubal chat --server 127.0.0.1:50051 --temperature 0.8\n"},
    CommandText{Command::kPlan, "plan",
                "jubal plan --model (DIR | grok-1) -n RANKS [--device-memory SIZE] [flags]",
                "memory of each rank, before anything starts",
                "Prints every byte that each rank will hold, from the code that allocates them. "
                "With\n--device-memory, exits with status 78 if a rank needs more, and says what "
                "to change.\n\n"
                "  jubal plan --model grok-1 -n 8 --device-memory 80GB\n"
                "  jubal plan --model /models/grok-1 -n 4 --kv-memory 4GB --json\n"},
    CommandText{
        Command::kInspect, "inspect", "jubal inspect --model (DIR | grok-1) [-n RANKS]",
        "tables of a checkpoint, and of who holds what",
        "Prints each tensor with its role, type, shape and file, then the heads, experts "
        "and chunks\nof each rank. With --verify, exits with status 65 if a packed model is "
        "damaged.\n\n"
        "  jubal inspect --model /models/grok-1 -n 8\n"
        "  jubal inspect --model /models/grok-1-packed --verify\n"},
    CommandText{Command::kPack, "pack", "jubal pack --model DIR --output DIR [--weights TYPE]",
                "store a model so that ranks map it instead of loading",
                "Writes a model directory for every command: all weights in one file, as they lie "
                "in memory,\nand copies of config.json and tokenizer.model. Ranks map the file "
                "read-only and share it; a\nsecond start takes milliseconds. Any number of ranks "
                "and any plan can use it, with the same\nresults as the checkpoint, bit for bit. "
                "--weights makes it smaller, and its results others.\n\n"
                "  jubal pack --model /models/grok-1 --output /models/grok-1-packed\n"
                "  jubal pack --model /models/mixtral --output /models/mixtral-int8 --weights "
                "int8\n"},
    CommandText{Command::kRank, "rank",
                "mpirun -n RANKS jubal rank --model DIR --coordinator "
                "ADDRESS [flags]",
                "one rank of a server, for launchers other than serve",
                "serve starts these itself. The number of ranks must be the one that the "
                "coordinator expects.\n\n"
                "  mpirun -n 8 -x JUBAL_CONTROL_TOKEN jubal rank --model /models/grok-1 "
                "--coordinator head:4711\n"},
    CommandText{Command::kCoordinator, "coordinator",
                "jubal coordinator --model DIR --control ADDRESS --supervisor-fd FD [flags]", "",
                "serve starts this itself.\n"},
    CommandText{Command::kVersion, "version", "jubal version", "print the version", ""},
    CommandText{Command::kHelp, "help", "jubal help [COMMAND]", "explain a command", ""},
};

const CommandText* FindCommand(std::string_view name) {
  const auto found = std::find_if(kCommands.begin(), kCommands.end(),
                                  [&](const CommandText& text) { return text.name == name; });
  return found == kCommands.end() ? nullptr : &*found;
}

/// Insertions, deletions and replacements that turn one word into the other.
std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// ": did you mean WORD?" for the word most like `given`, or `otherwise`.
std::string Suggestion(std::string_view given, const std::vector<std::string>& words,
                       const std::string& otherwise) {
  const auto nearest =
      std::min_element(words.begin(), words.end(), [&](const std::string& a, const std::string& b) {
        return EditDistance(given, a) < EditDistance(given, b);
      });
  if (nearest != words.end() && EditDistance(given, *nearest) <= 1 + given.size() / 4) {
    return fmt::format(": did you mean {}?", *nearest);
  }
  return otherwise;
}

po::options_description FlagsOf(const CommandText& command) {
  constexpr unsigned kWidth = 100;
  po::options_description flags("Flags", kWidth, kWidth / 2);
  for (const Flag& flag : kFlags) {
    if ((flag.commands & In(command.command)) == 0) continue;
    const std::string name = fmt::format("{}{}", flag.one_letter() ? "," : "", flag.name);
    if (flag.value == nullptr) {
      flags.add_options()(name.c_str(), flag.help);
    } else {
      flags.add_options()(name.c_str(), po::value<std::string>()->value_name(flag.value),
                          flag.help);
    }
  }
  return flags;
}

std::string HelpFor(const CommandText& command) {
  std::ostringstream text;
  text << "usage: " << command.usage << "\n\n" << command.detail;
  if (const po::options_description flags = FlagsOf(command); !flags.options().empty()) {
    text << '\n' << flags;
  }
  return text.str();
}

std::string GeneralHelp() {
  std::string text =
      "usage: jubal COMMAND [flags]\n\n"
      "Serves Grok-1 and other mixture-of-experts models from MPI ranks.\n\n";
  for (const CommandText& command : kCommands) {
    if (!command.summary.empty()) {
      text += fmt::format("  {:<10}{}\n", command.name, command.summary);
    }
  }
  return text +
         "\nBegin with\n\n"
         "  jubal plan --model grok-1 -n 8       what each of 8 ranks would hold\n"
         "  jubal serve --model DIR -n 4         a gRPC server on 4 ranks\n"
         "  jubal help COMMAND                   flags and examples of a command\n";
}

std::string HelpText(const std::string& name) {
  const CommandText* command = FindCommand(name);
  if (command == nullptr) Refuse(fmt::format("there is no command '{}': see jubal help", name));
  return HelpFor(*command);
}

[[noreturn]] void RefuseUnknownFlag(const std::string& given, const CommandText& command) {
  const std::string word = given.substr(0, given.find('='));
  std::vector<std::string> known;
  for (const Flag& flag : kFlags) {
    const std::string spelling = flag.Spelling();
    if ((flag.commands & In(command.command)) != 0) {
      known.push_back(spelling);
    } else if (spelling == word) {
      Refuse(fmt::format("jubal {} has no flag {}: see jubal help {}", command.name, word,
                         command.name));
    }
  }
  Refuse(fmt::format("unknown flag {}{}", word,
                     Suggestion(word, known, fmt::format(": see jubal help {}", command.name))));
}

/// The flags as they were given, in order.
std::vector<std::pair<const Flag*, Value>> ReadFlags(std::span<const std::string> arguments,
                                                     const CommandText& command) {
  const po::options_description known = FlagsOf(command);
  po::parsed_options parsed(nullptr);
  try {
    namespace style = po::command_line_style;
    parsed = po::command_line_parser({arguments.begin(), arguments.end()})
                 .options(known)
                 .style(style::unix_style & ~style::allow_guessing & ~style::allow_sticky)
                 .run();
  } catch (const po::unknown_option& error) {
    RefuseUnknownFlag(error.get_option_name(), command);
  } catch (const po::error& error) {
    Refuse(fmt::format("{}: see jubal help {}", error.what(), command.name));
  }
  std::vector<std::pair<const Flag*, Value>> given;
  for (const po::option& option : parsed.options) {
    if (option.string_key.empty()) {
      Refuse(fmt::format("unexpected argument '{}': flags begin with --",
                         fmt::join(option.original_tokens, " ")));
    }
    const Flag& flag = *std::find_if(kFlags.begin(), kFlags.end(), [&](const Flag& candidate) {
      return option.string_key == (candidate.one_letter() ? candidate.Spelling() : candidate.name);
    });
    const bool again = std::any_of(given.begin(), given.end(),
                                   [&](const auto& earlier) { return earlier.first == &flag; });
    if (again && !flag.repeatable) Refuse(fmt::format("{} is given twice", flag.Spelling()));
    given.emplace_back(&flag,
                       Value{flag.Spelling(), option.value.empty() ? "" : option.value.front()});
  }
  return given;
}

void RequireOneOf(const char* first, bool has_first, const char* second, bool has_second,
                  std::string_view command) {
  if (has_first && has_second) Refuse(fmt::format("{} and {} exclude each other", first, second));
  if (!has_first && !has_second) {
    Refuse(fmt::format("jubal {} needs {} or {}", command, first, second));
  }
}

void CheckBench(const Options& o, const CommandText& command) {
  RequireOneOf("--model", !o.model.empty(), "--synthetic", o.bench.synthetic.has_value(),
               command.name);
  if (o.weights && !o.bench.synthetic) {
    Refuse("--weights goes with --synthetic: a model's weights are served as they are stored");
  }
  if (o.bench.prefill == 0 && o.bench.decode == 0) {
    Refuse("--prefill 0 and --decode 0 leave nothing to measure");
  }
  if (o.json && o.bench.csv) Refuse("--json and --csv exclude each other");
}

void CheckComplete(const Options& o, const CommandText& command) {
  if (o.command == Command::kBench) {
    CheckBench(o, command);
  } else if ((In(o.command) & kModel) != 0 && o.model.empty()) {
    Refuse(fmt::format("jubal {} needs --model DIR", command.name));
  }
  if (o.command == Command::kPack && o.output.empty()) Refuse("jubal pack needs --output DIR");
  if (o.command == Command::kGenerate) {
    RequireOneOf("--prompt", o.prompt.has_value(), "--prompt-ids", o.prompt_ids.has_value(),
                 command.name);
  }
  if (o.command == Command::kScore) {
    RequireOneOf("--text-file", o.text_file.has_value(), "--ids", o.ids.has_value(), command.name);
  }
  if (o.command == Command::kRank && o.coordinator.empty()) {
    Refuse("jubal rank needs --coordinator ADDRESS; to start a whole server, use jubal serve");
  }
  if (o.command == Command::kCoordinator && (o.control.empty() || o.supervisor_fd < 0)) {
    Refuse("jubal coordinator is started by jubal serve");
  }
}

/// Whether a flag of a command that starts ranks goes on to them as it was given.
bool IsForRanks(const Flag& flag, Command command) {
  const std::string_view name = flag.name;
  return command == Command::kServe
             ? (flag.commands & In(Command::kRank)) != 0
             : command == Command::kBench && flag.value != nullptr && name != "scaling";
}

}  // namespace

Options ParseCommandLine(std::span<const std::string> arguments) {
  if (arguments.empty()) Refuse("a command is missing: see jubal help");
  const std::string& first = arguments.front();
  Options options;
  if (first == "--help" || first == "-h" || first == "help") {
    if (arguments.size() > 2) Refuse("jubal help explains one command at a time");
    options.help = arguments.size() == 2 ? HelpText(arguments[1]) : GeneralHelp();
    return options;
  }
  if (first == "--version") {
    options.command = Command::kVersion;
    return options;
  }
  const CommandText* const command = FindCommand(first);
  if (command == nullptr) {
    std::vector<std::string> names;
    for (const CommandText& text : kCommands) {
      if (!text.summary.empty()) names.emplace_back(text.name);
    }
    Refuse(fmt::format("there is no command '{}'{}", first,
                       Suggestion(first, names, ": see jubal help")));
  }

  options.command = command->command;
  const auto given = ReadFlags(arguments.subspan(1), *command);
  for (const auto& [flag, value] : given) {
    flag->set(options, value);
    if (options.command == Command::kHelp) {
      options.help = HelpFor(*command);
      return options;
    }
    if (IsForRanks(*flag, options.command)) {
      options.rank_arguments.push_back(fmt::format("{}={}", value.flag, value.text));
    }
  }
  CheckComplete(options, *command);
  return options;
}

}  // namespace jubal

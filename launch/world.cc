#include "launch/world.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "kernels/cpu_isa.h"
#include "kernels/error.h"
#include "kernels/paged_attention.h"
#include "launch/cores.h"
#include "launch/devices.h"
#include "launch/memory_size.h"
#include "parallel/gather_values.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_communicator.h"
#include "parallel/shared_memory_communicator.h"
#include "runtime/memory_plan.h"

namespace jubal {
namespace {

/// A UserError that every rank has.
class AgreedError : public UserError {
 public:
  using UserError::UserError;
};

int Fail(int rank, int size, std::string_view message, int status) {
  if (size == 1) {
    PrintError(message);
    return status;
  }
  // Mostly all ranks fail alike, and the leader's message is enough.
  if (rank != 0) LetOthersSpeakFirst();
  PrintError(fmt::format("rank {}: {}", rank, message));
  MpiSession::Abort(status);
}

SharedMemoryHooks SharingHooks() {
  return {.while_waiting = MpiSession::Progress,
          .on_failure = [told = false](const std::string& failure) mutable {
            if (told) return;
            told = true;
            PrintError(
                fmt::format("ranks of this host cannot share memory ({}); their messages go "
                            "through MPI",
                            failure));
          }};
}

void ShareCores(Communicator& node, std::optional<int> threads) {
  const CpuSet mine = TakeCores();
  const std::vector<CpuSet> sets = GatherValues(node, mine);
  const auto sharing = std::count(sets.begin(), sets.end(), mine);
  const int fair = std::max(1, CountCores(mine) / static_cast<int>(sharing));
  UseThreads(threads.value_or(fair));
}

void ReportPlan(const ModelSource& source, const Mesh& mesh, const ServingOptions& options) {
  const ParallelPlan& plan = mesh.plan;
  MemoryPlan largest;
  for (int rank = 0; rank < plan.world(); ++rank) {
    MemoryPlan memory = PlanMemory(source, plan, SeatOf(plan, rank), options);
    if (memory.total() > largest.total()) largest = std::move(memory);
  }
  const std::string weights =
      largest.weights_mapped ? ""
                             : fmt::format("weights {}, ", MemorySizeText(largest.weight_bytes));
  fmt::print(stderr,
             "{}: {}, {} rank{} ({})\n"
             "a rank holds up to {}: {}{} tokens of keys and values {}, buffers {}\n",
             source.name(), source.model().family, plan.world(), plan.world() == 1 ? "" : "s",
             plan.ToString(), MemorySizeText(largest.own()), weights,
             largest.limits.num_pages * kPageTokens, MemorySizeText(largest.kv_bytes),
             MemorySizeText(largest.activation_bytes + largest.segment_bytes));
  if (largest.weights_mapped) {
    fmt::print(stderr,
               "and reads up to {} of {}, mapped: page cache that the ranks of a node share\n",
               MemorySizeText(largest.weight_bytes), kPackFileName);
  }
}

/// Ranks that share a card share what it has free.
void RequireGpuMemory(const SeatedRank& rank, std::int64_t mine) {
  struct Need {
    std::array<char, 64> uuid{};
    std::int64_t bytes = 0;
  };
  const GpuInfo info = rank.gpu->info();
  Need need{.bytes = mine};
  info.uuid.copy(need.uuid.data(), need.uuid.size() - 1);
  std::int64_t together = 0;
  for (const Need& other : GatherValues(*rank.mesh.node, need)) {
    if (other.uuid == need.uuid) together += other.bytes;
  }
  Agree(*rank.mesh.world, [&] {
    if (together <= info.free_bytes) return;
    throw UserError(
        ExitStatus::kConfig,
        fmt::format("{} of GPU memory is needed, but {} has {} free: use more ranks, "
                    "each with a GPU of its own, or lower --kv-memory",
                    MemorySizeText(together), info.name, MemorySizeText(info.free_bytes)));
  });
}

}  // namespace

void PrintError(std::string_view message) {
  const std::string line = fmt::format("jubal: {}\n", message);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void LetOthersSpeakFirst() { std::this_thread::sleep_for(std::chrono::seconds(3)); }

int LaunchedRank() {
  for (const char* const name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* const rank = std::getenv(name)) return std::atoi(rank);
  }
  return 0;
}

int RunAsRank(const std::function<void(std::unique_ptr<Communicator>)>& body) {
  int rank = 0;
  int size = 1;
  try {
    // Outlives what is thrown from `body`: ranks that agree on an error leave MPI in order.
    std::optional<MpiSession> session;
    if (MpiSession::Launched()) session.emplace();
    std::unique_ptr<Communicator> world = session
                                              ? OverSharedMemory(session->World(), SharingHooks())
                                              : std::move(MakeLocalWorld(1).front());
    rank = world->rank();
    size = world->size();
    try {
      body(std::move(world));
      return EXIT_SUCCESS;
    } catch (const AgreedError& error) {
      if (rank == 0) PrintError(error.what());
      return static_cast<int>(error.status());
    }
  } catch (const UserError& error) {
    return Fail(rank, size, error.what(), static_cast<int>(error.status()));
  } catch (const std::exception& error) {
    return Fail(rank, size, error.what(), EXIT_FAILURE);
  }
}

void Agree(Communicator& world, const std::function<void()>& step) {
  int status = EXIT_SUCCESS;
  std::vector<std::byte> message;
  try {
    step();
  } catch (const UserError& error) {
    status = static_cast<int>(error.status());
    message.resize(std::strlen(error.what()));
    std::memcpy(message.data(), error.what(), message.size());
  }
  const std::vector<int> all = GatherValues(world, status);
  const auto first = std::find_if(all.begin(), all.end(), [](int s) { return s != EXIT_SUCCESS; });
  if (first == all.end()) return;
  const auto rank = static_cast<int>(first - all.begin());
  world.Broadcast(message, rank);
  std::string text(reinterpret_cast<const char*>(message.data()), message.size());
  if (rank != 0) text = fmt::format("rank {}: {}", rank, text);
  throw AgreedError(static_cast<ExitStatus>(*first), text);
}

ModelSource OpenModel(const Options& options) {
  if (options.bench.synthetic) {
    return ModelSource::Synthetic(*options.bench.synthetic,
                                  options.weights.value_or(WeightType::kInt8));
  }
  return ModelSource::Open(options.model);
}

SeatedRank TakeSeat(const Options& options, std::unique_ptr<Communicator> world,
                    const std::function<void(const ModelSource&, const ParallelPlan&)>& check) {
  RankDevice device = ChooseDevice(options.device, options.gpus, std::move(world));
  std::optional<ModelSource> source;
  ParallelPlan plan;
  ServingOptions serving = options.serving;
  if (device.gpu != nullptr) serving.device = Device::kCuda;
  Agree(*device.world, [&] {
    source = OpenModel(options);
    plan = MakePlan(device.world->size(), static_cast<int>(source->model().experts),
                    options.exchange, options.expert_parallel, options.data_parallel);
    LimitsOf(source->model(), plan, serving);
    if (device.world->rank() == 0) check(*source, plan);
  });
  const std::vector<CpuIsa> tiers = GatherValues(*device.world, options.isa.value_or(BestCpuIsa()));
  ForceCpuIsa(*std::min_element(tiers.begin(), tiers.end()));

  Mesh mesh = MakeMesh(plan, std::move(device.world));
  SeatedRank seated{std::move(*source), serving, std::move(device.gpu), std::move(mesh)};
  ShareCores(*seated.mesh.node, options.threads);
  if (seated.mesh.leader()) {
    if (device.connected) {
      fmt::print(stderr, "ranks meet through {}\n", options.gpus.describe(*seated.mesh.world));
    }
    ReportPlan(seated.source, seated.mesh, serving);
  }
  return seated;
}

void RequireMemory(const SeatedRank& rank) {
  const MemoryPlan mine = PlanMemory(rank.source, rank.mesh.plan, rank.mesh.seat, rank.serving);
  std::int64_t on_host = mine.total();
  if (rank.gpu != nullptr) {
    on_host = mine.pinned_bytes + mine.loading_bytes;
    RequireGpuMemory(rank, mine.total());
  }
  const std::vector<std::int64_t> neighbours = GatherValues(*rank.mesh.node, on_host);
  Agree(*rank.mesh.world, [&] {
    const std::int64_t needed =
        std::accumulate(neighbours.begin(), neighbours.end(), std::int64_t{0});
    const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    if (needed > memory) {
      throw UserError(ExitStatus::kConfig,
                      fmt::format("the ranks on one host need {} together, but it has {} of memory",
                                  MemorySizeText(needed), MemorySizeText(memory)));
    }
  });
}

}  // namespace jubal

#include "parallel/gpu_assignment.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <set>
#include <vector>

#include "kernels/error.h"
#include "parallel/gather_values.h"

namespace jubal {
namespace {

/// RankGpu in a message. Longer names are cut.
struct Seat {
  std::array<char, 64> host{};
  std::array<char, 64> uuid{};
  int gpu = -1;
};

void Write(std::string_view text, std::array<char, 64>& field) {
  text.copy(field.data(), field.size() - 1);
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

int GpuOfRank(int local_rank, int visible) { return visible == 0 ? -1 : local_rank % visible; }

bool GpusAreShared(std::span<const RankGpu> ranks) {
  const auto without =
      std::find_if(ranks.begin(), ranks.end(), [](const RankGpu& rank) { return rank.gpu < 0; });
  const bool some_have =
      std::any_of(ranks.begin(), ranks.end(), [](const RankGpu& rank) { return rank.gpu >= 0; });
  if (!some_have) return false;
  if (without != ranks.end()) {
    throw UserError(ExitStatus::kConfig,
                    fmt::format("rank {} sees no GPU, but others do: show it one, or use --device "
                                "cpu\n{}",
                                without - ranks.begin(), GpuTable(ranks)));
  }
  std::set<std::string_view> cards;
  return !std::all_of(ranks.begin(), ranks.end(),
                      [&](const RankGpu& rank) { return cards.insert(rank.uuid).second; });
}

std::string GpuTable(std::span<const RankGpu> ranks) {
  std::size_t host_width = 0;
  for (const RankGpu& rank : ranks) host_width = std::max(host_width, rank.host.size());
  std::string table;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const RankGpu& rank = ranks[r];
    table += fmt::format("  rank {:<3}  {:<{}}  ", r, rank.host, host_width);
    table += rank.gpu < 0 ? "no GPU\n" : fmt::format("GPU {}  {}\n", rank.gpu, rank.uuid);
  }
  return table;
}

GpuAssignment AssignGpus(Communicator& world, std::span<const std::string> uuids) {
  const int gpu = GpuOfRank(world.SplitByNode()->rank(), static_cast<int>(uuids.size()));
  Seat mine{.gpu = gpu};
  Write(HostName(), mine.host);
  if (gpu >= 0) Write(uuids[static_cast<std::size_t>(gpu)], mine.uuid);
  std::vector<RankGpu> ranks;
  for (const Seat& seat : GatherValues(world, mine)) {
    ranks.push_back({.host = seat.host.data(), .gpu = seat.gpu, .uuid = seat.uuid.data()});
  }
  return {.gpu = gpu, .shared = GpusAreShared(ranks), .table = GpuTable(ranks)};
}

}  // namespace jubal

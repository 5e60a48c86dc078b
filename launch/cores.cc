#include "launch/cores.h"

#include <hwloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "parallel/mpi_communicator.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace jubal {
namespace {

struct TopologyDeleter {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<hwloc_topology, TopologyDeleter>;

struct BitmapDeleter {
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, BitmapDeleter>;

Topology ThisHost() {
  hwloc_topology_t topology = nullptr;
  hwloc_topology_init(&topology);
  hwloc_topology_load(topology);
  return Topology(topology);
}

/// Open MPI sets this for its ranks when the user or a configuration file said how to bind.
bool BindingWasAskedFor() { return std::getenv("OMPI_MCA_hwloc_base_binding_policy") != nullptr; }

}  // namespace

CpuSet TakeCores() {
  const Topology host = ThisHost();
  const Bitmap cores(hwloc_bitmap_alloc());
  // The launcher is this process's parent, and does not bind itself.
  if (MpiSession::Launched() && !BindingWasAskedFor() &&
      hwloc_get_proc_cpubind(host.get(), getppid(), cores.get(), 0) == 0) {
    hwloc_set_cpubind(host.get(), cores.get(), HWLOC_CPUBIND_PROCESS);
  }
  if (hwloc_get_cpubind(host.get(), cores.get(), HWLOC_CPUBIND_PROCESS) != 0) {
    hwloc_bitmap_copy(cores.get(), hwloc_topology_get_allowed_cpuset(host.get()));
  }
  CpuSet set;
  for (unsigned i = 0; i < set.size(); ++i) set[i] = hwloc_bitmap_to_ith_ulong(cores.get(), i);
  return set;
}

std::string ProcessorName() {
  const Topology host = ThisHost();
  const hwloc_obj_t package = hwloc_get_obj_by_type(host.get(), HWLOC_OBJ_PACKAGE, 0);
  const char* const name =
      package == nullptr ? nullptr : hwloc_obj_get_info_by_name(package, "CPUModel");
  return name == nullptr ? "a processor without a name" : name;
}

std::int64_t LastLevelCacheBytes() {
  const Topology host = ThisHost();
  std::int64_t bytes = 0;
  for (const hwloc_obj_type_t level :
       {HWLOC_OBJ_L4CACHE, HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L1CACHE}) {
    for (hwloc_obj_t cache = nullptr;
         (cache = hwloc_get_next_obj_by_type(host.get(), level, cache)) != nullptr;) {
      bytes += static_cast<std::int64_t>(cache->attr->cache.size);
    }
    if (bytes > 0) break;
  }
  return bytes;
}

void UseThreads(int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#else
  static_cast<void>(threads);
#endif
}

int CountCores(const CpuSet& set) {
  const Topology host = ThisHost();
  const Bitmap cores(hwloc_bitmap_alloc());
  for (unsigned i = 0; i < set.size(); ++i) hwloc_bitmap_set_ith_ulong(cores.get(), i, set[i]);
  int count = 0;
  for (hwloc_obj_t core = nullptr;
       (core = hwloc_get_next_obj_by_type(host.get(), HWLOC_OBJ_CORE, core)) != nullptr;) {
    count += hwloc_bitmap_intersects(core->cpuset, cores.get());
  }
  return std::max(count, 1);
}

}  // namespace jubal

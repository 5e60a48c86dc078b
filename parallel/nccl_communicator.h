#ifndef JUBAL_PARALLEL_NCCL_COMMUNICATOR_H_
#define JUBAL_PARALLEL_NCCL_COMMUNICATOR_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "kernels/gpu.h"
#include "parallel/communicator.h"

namespace jubal {

/// The environment variable that should bring NcclOptions::encryption_key to every rank.
inline constexpr const char* kNcclKeyVariable = "JUBAL_NCCL_KEY";

struct NcclOptions {
  /// How long ranks may take to connect, when a group is made.
  std::chrono::milliseconds start_limit{120'000};
  /// How long Wait waits, and how long NCCL may take to enqueue a call: the first of its kind
  /// connects to its peers. A rank that may be late for longer than that is waited for by Barrier.
  std::chrono::milliseconds wait_limit{60'000};
  /// When not empty and the ranks are on several hosts, NCCL encrypts its TCP connections with it:
  /// at least 32 bytes, the same on all ranks. Other transports (NVLink, InfiniBand) it does not
  /// encrypt.
  std::string encryption_key{};
};

/// A world whose rows on GPUs go through NCCL, and all else (rows in host memory, Broadcast,
/// Barrier) through `control`, whose ranks are the world's. A rank's GPU is `gpu`, current for the
/// calling thread; no two ranks have the same (parallel/gpu_assignment.h). Collective. `gpu`
/// outlives what is made here, and one thread makes every call.
///
/// NCCL returns at once from everything; what it does not end in time, and what it reports, ends
/// all its groups in this process (their work on the GPU stops) and throws CommunicationError,
/// which tells the latest calls. Groups of one rank use no NCCL, and groups of the same ranks share
/// what NCCL keeps for them: calls on them have one order.
///
/// Split and SplitByNode need a GPU with nothing under way. NCCL's memory is given back when the
/// last group is gone. That waits for nobody, so ranks that end in order first Wait, then meet in a
/// Barrier; graphs that hold calls go before.
///
/// Throws UserError (kConfig), on all ranks alike, when a rank has an NCCL before 2.28 or another
/// one than the others, or when a key is given that only some ranks have, is too short, or cannot
/// be used by this NCCL.
std::unique_ptr<Communicator> OverNccl(std::unique_ptr<Communicator> control, Gpu& gpu,
                                       const NcclOptions& options);

/// The GPU memory that NCCL has taken on this rank for all groups of such a world, in bytes; none
/// where NCCL does not tell, which it does from 2.29.7 on. `group` is from OverNccl or split from
/// one that is.
std::optional<std::int64_t> NcclMemory(const Communicator& group);

/// Of the library that is loaded: "2.28.9".
std::string NcclVersion();

}  // namespace jubal

#endif  // JUBAL_PARALLEL_NCCL_COMMUNICATOR_H_

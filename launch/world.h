#ifndef JUBAL_LAUNCH_WORLD_H_
#define JUBAL_LAUNCH_WORLD_H_

#include <functional>
#include <memory>
#include <string_view>

#include "launch/options.h"
#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "runtime/model_source.h"

namespace jubal {

/// Prints "jubal: MESSAGE" on standard error, at once and as one line.
void PrintError(std::string_view message);

/// The rank that a launcher gave this process, known before MPI starts; 0 without a launcher.
int LaunchedRank();

/// Waits, for a rank that has an error which others have, too, or know better: when they have said
/// it and exit, the launcher ends this process meanwhile. mpirun takes up to two seconds for that.
void LetOthersSpeakFirst();

/// Makes this process a rank of a job (of an MPI job when a launcher started it, else of a world of
/// one), runs `body` and returns the exit status. What `body` throws is printed here, once for the
/// whole job where all ranks fail alike. A rank that fails alone ends the job.
int RunAsRank(const std::function<void(std::unique_ptr<Communicator>)>& body);

/// Runs `step`, which must not communicate, on every rank, and returns if it threw UserError on
/// none. Otherwise throws the same error on all ranks, that of the first rank that has one;
/// RunAsRank then ends the job in peace. Collective.
void Agree(Communicator& world, const std::function<void()>& step);

/// A rank that is ready to load: its model opened, its seat taken.
struct SeatedRank {
  ModelSource source;
  ServingOptions serving;    // as asked for, on the device that computes
  std::unique_ptr<Gpu> gpu;  // null: the CPU; outlives the mesh
  Mesh mesh;
};

/// The model that the options name, or describe.
ModelSource OpenModel(const Options& options);

/// Opens the model, seats the ranks and gives each its GPU, or its threads and the instruction set
/// that all have. `check` is run on the leader before anything is allocated, to refuse what cannot
/// work. The leader reports the memory plan on standard error. Collective. Throws UserError on all
/// ranks alike.
SeatedRank TakeSeat(const Options& options, std::unique_ptr<Communicator> world,
                    const std::function<void(const ModelSource&, const ParallelPlan&)>& check);

/// Throws UserError (kConfig) on all ranks alike when those of one host need more memory than it
/// has, or than its GPUs have free. Collective.
void RequireMemory(const SeatedRank& rank);

}  // namespace jubal

#endif  // JUBAL_LAUNCH_WORLD_H_

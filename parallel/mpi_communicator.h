#ifndef JUBAL_PARALLEL_MPI_COMMUNICATOR_H_
#define JUBAL_PARALLEL_MPI_COMMUNICATOR_H_

#include <memory>

#include "parallel/communicator.h"

namespace jubal {

/// The life of MPI in this process: initialised on construction (MPI_THREAD_FUNNELED: the
/// constructing thread makes every call), finalised on destruction. One per process.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// Whether a launcher (mpirun, srun) started this process as a rank of a job.
  static bool Launched();

  /// All ranks of the job. To be destroyed before the session.
  std::unique_ptr<Communicator> World();

  /// Lets the library get on with what it has to deliver. For a rank that waits for something else.
  static void Progress();

  /// Ends every process of the job at once; the job's exit status becomes `status`.
  [[noreturn]] static void Abort(int status);
};

}  // namespace jubal

#endif  // JUBAL_PARALLEL_MPI_COMMUNICATOR_H_

#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/memory_size.h"
#include "launch/progress_line.h"
#include "runtime/model_source.h"
#include "runtime/pack_writer.h"

namespace jubal {

int RunPack(const Options& options) {
  const ModelSource source = ModelSource::Open(options.model);
  if (options.threads) UseThreads(*options.threads);
  WritePack(source, options.weights, options.output, ProgressLine("packing", "packed"));
  const ModelSource packed = ModelSource::Open(options.output);
  fmt::print("{}: {} of weights, {} before\n",
             (std::filesystem::path(options.output) / kPackFileName).string(),
             MemorySizeText(packed.stored_bytes()), MemorySizeText(source.stored_bytes()));
  return EXIT_SUCCESS;
}

}  // namespace jubal

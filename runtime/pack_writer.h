#ifndef JUBAL_RUNTIME_PACK_WRITER_H_
#define JUBAL_RUNTIME_PACK_WRITER_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "kernels/packed_matrix.h"
#include "runtime/model.h"
#include "runtime/model_source.h"

namespace jubal {

/// How a pack stores a weight that the checkpoint has in `stored`: matrices of more bits than
/// `type` become `type`, everything else stays. Routers and norms stay always; embedding and output
/// matrix go down to int8 at most. Scales are one per column, for by-input matrices one per column
/// and eighth of the rows (Grok-1's form), for int4 one per column and 64 rows. Vectors are f32.
WeightFormat PackedFormat(const WeightSpec& spec, const WeightFormat& stored,
                          std::optional<WeightType> type);

/// Makes `directory` a model directory of its own: a pack of the checkpoint's weights, a copy of
/// its config.json and tokenizer.model where it has them. The pack appears under its name when all
/// of it is on the disk; what a failure leaves behind bears another. Its bytes depend on the
/// checkpoint and `type` alone. `progress`: bytes of the pack written, and in all.
///
/// Throws UserError: kUsage when a pack or another model's file is there already, or the model is
/// packed itself; kConfig when the disk lacks the space; kBadData for values that are not finite;
/// kIoError when writing fails.
void WritePack(const ModelSource& source, std::optional<WeightType> type,
               const std::filesystem::path& directory,
               const std::function<void(std::int64_t done, std::int64_t total)>& progress);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_PACK_WRITER_H_

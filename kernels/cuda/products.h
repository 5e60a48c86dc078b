#ifndef JUBAL_KERNELS_CUDA_PRODUCTS_H_
#define JUBAL_KERNELS_CUDA_PRODUCTS_H_

#include "kernels/cuda/device.h"
#include "kernels/gated_activation.h"
#include "kernels/gpu_products.h"
#include "kernels/matmul.h"
#include "kernels/packed_matrix.h"
#include "kernels/tensor.h"

namespace jubal {

// What the GPU forms of all products are made of: rows of x put in planes, one kernel that
// multiplies whatever is asked, and the tree over the chunks. Everything here is a kernel's
// argument, or enqueues one.

/// Where one chunk of a matrix lies, and where in a row of x.
struct ChunkOnGpu {
  std::int64_t data = 0;    // bytes from the expert's to the chunk's first block
  std::int64_t scales = 0;  // floats from the expert's to the chunk's first group
  std::int32_t x = 0;       // elements of a row of x before the chunk's
  std::int32_t slab = 0;    // slabs of a row before the chunk's
  std::int32_t rows = 0;
  std::int32_t first_rows = 0;  // of its first scale group
  std::int32_t groups = 0;
  std::int32_t steps = 0;  // of one block
};

/// A packed matrix, or a stack of them.
struct MatrixOnGpu {
  MatrixOnGpu() = default;
  explicit MatrixOnGpu(const PackedMatrix& matrix);

  const std::byte* data = nullptr;
  const float* scales = nullptr;
  std::int64_t expert_bytes = 0;
  std::int64_t expert_scales = 0;
  std::int32_t scales_stride = 0;
  std::int32_t group_rows = 0;
  std::int32_t blocks = 0;
  std::int32_t column_offset = 0;  // stored in front of the first owned column
  std::int32_t columns = 0;
  std::int32_t num_chunks = 0;
  ChunkOnGpu chunks[kChunks] = {};
};

/// Rows of x, in planes where the weights' type wants them.
struct RowsOnGpu {
  const float* x = nullptr;  // f32 weights
  std::int64_t x_stride = 0;
  const uint2* planes = nullptr;
  std::int64_t planes_stride = 0;
  const float* scales = nullptr;        // integers: [rows][chunks]
  const std::int32_t* limit = nullptr;  // rows from *limit on are left alone
};

/// What becomes of the sums.
enum class Result : std::int32_t {
  kWhole,     // out[i] = multiplier · x · matrix i
  kGated,     // out[0] = activation(x · matrix 0) ⊙ (x · matrix 1)
  kPartials,  // chunks of matrix 0, into the nodes of their tree
};

struct Products {
  WeightType type = WeightType::kF32;
  MatrixOnGpu matrices[kMostMatmuls] = {};
  std::int32_t count = 1;  // of matrices
  RowsOnGpu x = {};
  std::int32_t rows = 0;
  std::int32_t experts = 1;
  const std::int32_t* offsets = nullptr;  // whose row is whose, or null: all are the only expert's
  Result result = Result::kWhole;
  float* out[kMostMatmuls] = {};
  std::int64_t out_stride[kMostMatmuls] = {};
  float multipliers[kMostMatmuls] = {};
  Activation activation = Activation::kGeluTanh;
  // kPartials: where the nodes lie, [rows][n] each. Chunk i finds so many nodes below it, and is
  // put where the first of them was. Or each is kept, and the tree is added up by others.
  bool split_chunks = false;
  float* nodes[kChunks] = {};
  std::int32_t below[kChunks] = {};
  std::int32_t kept[kChunks] = {};
};

/// Enqueues what makes rows of x ready to meet `layout`. `workspace` is GpuProductWorkspace's. Rows
/// from *limit on are left alone, if it is given.
RowsOnGpu EnqueueRows(ConstTensorView x, const PackedMatrix& matrix, std::byte* workspace,
                      const std::int32_t* limit, Stream& stream);

void EnqueueProducts(const Products& products, Stream& stream);

/// Enqueues the partial products of `down`, and what is left of the tree. Workspace as above.
void EnqueuePartials(TensorView out, const PackedMatrix& down, const RowsOnGpu& x,
                     const std::int32_t* offsets, std::byte* workspace, Stream& stream);

}  // namespace jubal

#endif  // JUBAL_KERNELS_CUDA_PRODUCTS_H_

#include "kernels/gated_experts.h"

#include "tests/kernels/cuda/product_gpu_test.h"

namespace jubal {
namespace {

constexpr std::int64_t kWidth = 70;         // of x
constexpr std::int64_t kExpertWidth = 170;  // of the hidden rows
constexpr std::int64_t kN = 70;
constexpr std::int64_t kExperts = 5;

/// A rank's share of the experts.
struct Share {
  Share(WeightType type, Range chunks, Range experts)
      : gate_matrix(type, kWidth, kExpertWidth, 4, kExperts),
        up_matrix(type, kWidth, kExpertWidth, 4, kExperts, /*output_major=*/true),
        down_matrix(type, kExpertWidth, kN, 8, kExperts),
        gate(gate_matrix,
             gate_matrix.LayoutByOutput(ColumnsOfChunks(kExpertWidth, chunks), experts)),
        up(up_matrix, up_matrix.LayoutByOutput(ColumnsOfChunks(kExpertWidth, chunks), experts)),
        down(down_matrix, down_matrix.LayoutByInput(chunks, experts)),
        width(gate.matrix().layout.columns.size()),
        planes(static_cast<std::int64_t>(MaximalSubtrees(chunks).size())) {}

  RandomMatrix gate_matrix;
  RandomMatrix up_matrix;
  RandomMatrix down_matrix;
  PackedShare gate;
  PackedShare up;
  PackedShare down;
  std::int64_t width;
  std::int64_t planes;
};

class GatedExpertsGpuTest : public ProductGpuTest {
 protected:
  struct Results {
    std::vector<float> out;
    std::vector<float> hidden;
  };

  /// Rows that the specification leaves alone are −1.
  static Results Specified(const Share& share, const Floats& x, const Ints& offsets,
                           Activation activation) {
    const std::int64_t rows = x.view().size(0);
    Results results{std::vector<float>(static_cast<std::size_t>(share.planes * rows * kN), -1.0f),
                    std::vector<float>(static_cast<std::size_t>(rows * share.width), -1.0f)};
    Floats out({share.planes, rows, kN}, results.out);
    Floats hidden({rows, share.width}, results.hidden);
    const AlignedBytes workspace(
        GatedExpertsWorkspaceBytes(share.gate.matrix().layout, share.down.matrix().layout, rows));
    RunSpecification(GatedExperts{.out = out.view(),
                                  .x = x.view(),
                                  .offsets = offsets.view(),
                                  .gate = share.gate.matrix(),
                                  .up = share.up.matrix(),
                                  .down = share.down.matrix(),
                                  .activation = activation,
                                  .hidden = hidden.view(),
                                  .workspace = {workspace.data(), DType::kU8, {workspace.size()}}});
    return {out.values(), hidden.values()};
  }

  /// Rows that are left alone are −1.
  Results Computed(const Share& share, const Floats& x, const Ints& offsets,
                   Activation activation) {
    const std::int64_t rows = x.view().size(0);
    const TensorView out = OnGpu(Floats({share.planes, rows, kN}, -1.0f));
    const TensorView hidden = OnGpu(Floats({rows, share.width}, -1.0f));
    Launch(GatedExperts{
        .out = out,
        .x = OnGpu(x),
        .offsets = OnGpu(offsets),
        .gate = OnGpu(share.gate.matrix()),
        .up = OnGpu(share.up.matrix()),
        .down = OnGpu(share.down.matrix()),
        .activation = activation,
        .hidden = hidden,
        .workspace = Workspace(GatedExpertsWorkspaceBytes(
            share.gate.matrix().layout, share.down.matrix().layout, rows, Device::kCuda))});
    return {ReadBack<float>(out), ReadBack<float>(hidden)};
  }
};
INSTANTIATE_GPU_TEST(GatedExpertsGpuTest);

struct Plan {
  std::int64_t rows;  // that there may be
  std::vector<std::int32_t> offsets;
};

// As many rows for each expert as choose each of the tiles.
const Plan kPlans[] = {{0, {0, 0, 0, 0}},        {3, {0, 0, 0, 0}},     {4, {0, 1, 1, 3}},
                       {20, {0, 0, 17, 20}},     {40, {0, 33, 34, 38}}, {80, {0, 5, 5, 75}},
                       {196, {0, 130, 131, 192}}};

// Breaks: tokens meet the wrong expert, an expert without tokens breaks the step, rows that belong
// to nobody are overwritten, or GPUs compute other bits than CPUs.
TEST_P(GatedExpertsGpuTest, RowsMeetTheirExpert) {
  for (const WeightType type : {WeightType::kF32, WeightType::kInt8, WeightType::kInt4}) {
    for (const Range chunks : {Range{0, 8}, Range{3, 6}}) {
      const Share share(type, chunks, {1, 4});
      for (const Plan& plan : kPlans) {
        if (chunks.begin > 0 && plan.rows != 20 && plan.rows != 196) continue;
        SCOPED_TRACE(Describe(type, kWidth, share.width, plan.rows));
        const Floats x = RandomRows(plan.rows, kWidth);
        const Ints offsets({4}, plan.offsets);
        const Activation activation =
            plan.rows % 8 == 0 ? Activation::kGeluTanh : Activation::kSilu;
        const Results expected = Specified(share, x, offsets, activation);
        const Results computed = Computed(share, x, offsets, activation);
        ExpectSameBits(expected.hidden, computed.hidden);
        ExpectSameBits(expected.out, computed.out);
      }
    }
  }
}

// Breaks: an expert is not the composition of its three products and the activation, in any type.
TEST_P(GatedExpertsGpuTest, OneExpertIsThreeProducts) {
  for (const WeightType type : kTypes) {
    const Share share(type, {0, 8}, {3, 4});
    for (const std::int64_t rows : {2, 12, 30, 131}) {
      SCOPED_TRACE(Describe(type, kWidth, kExpertWidth, rows));
      const Floats x = RandomRows(rows, kWidth);
      const Results computed = Computed(share, x, Ints({2}, {0, static_cast<std::int32_t>(rows)}),
                                        Activation::kGeluTanh);

      const ConstTensorView on_gpu = OnGpu(x);
      const TensorView gate = Allocate(DType::kF32, {rows, kExpertWidth});
      const TensorView up = Allocate(DType::kF32, {rows, kExpertWidth});
      const TensorView workspace = Workspace(share.gate.matrix().layout, rows);
      Launch(Matmul{gate, on_gpu, OnGpu(share.gate.matrix()), 1.0f, workspace});
      Launch(Matmul{up, on_gpu, OnGpu(share.up.matrix()), 1.0f, workspace});
      Floats hidden({rows, kExpertWidth}, ReadBack<float>(gate));
      const std::vector<float> host_up = ReadBack<float>(up);
      ApplyGatedActivation(Activation::kGeluTanh, hidden.values().data(), host_up.data(),
                           rows * kExpertWidth, hidden.values().data());
      ExpectSameBits(hidden.values(), computed.hidden);
      const TensorView out = Allocate(DType::kF32, {1, rows, kN});
      Launch(MatmulPartials{out, OnGpu(hidden), OnGpu(share.down.matrix()),
                            Workspace(share.down.matrix().layout, rows)});
      ExpectSameBits(ReadBack<float>(out), computed.out);
    }
  }
}

}  // namespace
}  // namespace jubal

#include "kernels/gated_experts.h"

#include <gtest/gtest.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <vector>

#include "kernels/cpu_isa.h"
#include "tests/kernels/cpu_tier_test.h"
#include "tests/kernels/matmul_operands.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

constexpr std::int64_t kRows = 80;
constexpr std::int64_t kHidden = 100;
constexpr std::int64_t kExpertHidden = 330;
constexpr std::int64_t kExperts = 6;

/// A rank's share of the experts, and buffers for one run.
struct Experts {
  Experts(WeightType type, Range chunks, Range experts)
      : gate_matrix(type, kHidden, kExpertHidden, 4, kExperts),
        up_matrix(type, kHidden, kExpertHidden, 4, kExperts),
        down_matrix(type, kExpertHidden, 150, 8, kExperts),
        gate(gate_matrix,
             gate_matrix.LayoutByOutput(ColumnsOfChunks(kExpertHidden, chunks), experts)),
        up(up_matrix, up_matrix.LayoutByOutput(ColumnsOfChunks(kExpertHidden, chunks), experts)),
        down(down_matrix, down_matrix.LayoutByInput(chunks, experts)),
        planes(static_cast<std::int64_t>(MaximalSubtrees(chunks).size())),
        hidden({kRows, gate.matrix().layout.columns.size()}),
        workspace(GatedExpertsWorkspaceBytes(gate.matrix().layout, down.matrix().layout, kRows)) {}

  GatedExperts Op(TensorView out, ConstTensorView x, std::vector<std::int32_t>& offsets,
                  Activation activation = Activation::kGeluTanh) {
    return {.out = out,
            .x = x,
            .offsets = {reinterpret_cast<const std::byte*>(offsets.data()),
                        DType::kI32,
                        {static_cast<std::int64_t>(offsets.size())}},
            .gate = gate.matrix(),
            .up = up.matrix(),
            .down = down.matrix(),
            .activation = activation,
            .hidden = hidden.view(),
            .workspace = workspace.view()};
  }

  RandomMatrix gate_matrix;
  RandomMatrix up_matrix;
  RandomMatrix down_matrix;
  PackedShare gate;
  PackedShare up;
  PackedShare down;
  std::int64_t planes;
  Floats hidden;
  Workspace workspace;
};

using GatedExpertsTier = CpuTierTest;
INSTANTIATE_TEST_SUITE_P(Tiers, GatedExpertsTier, testing::ValuesIn(kAllCpuIsas),
                         CpuTierTest::Name);

// If this fails, tokens meet the wrong expert, an expert without tokens breaks the step, rows that
// belong to nobody are overwritten, or a phase begins before the one it needs is done.
TEST_P(GatedExpertsTier, RowsMeetTheirExpert) {
  std::vector<std::vector<std::int32_t>> plans = {
      {0, 0, 0, 0}, {0, 1, 1, 3}, {0, 70, 71, 75}, {0, 0, 17, 80}, {0, 5, 5, 5}};
  for (const WeightType type : kTypes) {
    for (const Range chunks : {Range{0, 8}, Range{3, 6}}) {
      Experts experts(type, chunks, {2, 5});
      Floats x = RandomRows(kRows, kHidden, 4);
      for (std::vector<std::int32_t>& plan : plans) {
        SCOPED_TRACE(Describe(type, kHidden, kExpertHidden, 4) + " last offset " +
                     std::to_string(plan.back()));
        Floats expected({experts.planes, kRows, 150});
        Floats out({experts.planes, kRows, 150});
        RunSpecification(experts.Op(expected.view(), x.view(), plan));
        RunChecked(experts.Op(out.view(), x.view(), plan));
        ExpectSameBits(expected.view(), out.view());
        for (std::int64_t r = plan[3]; r < kRows; ++r) ASSERT_EQ(out.row(0)[r * 150], kUntouched);
      }
    }
  }
}

// If this fails, an expert is not the composition of its three products and the activation: a rank
// that holds one expert alone disagrees with one that holds many.
TEST_P(GatedExpertsTier, OneExpertIsThreeProducts) {
  for (const WeightType type : kTypes) {
    for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
      Experts experts(type, {0, 8}, {3, 4});
      Floats x = RandomRows(kRows, kHidden);
      std::vector<std::int32_t> offsets = {0, kRows};
      Floats out({1, kRows, 150});
      RunChecked(experts.Op(out.view(), x.view(), offsets, activation));

      Floats gate({kRows, kExpertHidden});
      Floats up({kRows, kExpertHidden});
      Floats expected({1, kRows, 150});
      const Workspace workspace(experts.gate.matrix().layout, kRows);
      RunChecked(MatmulOf(experts.gate, gate, x.view(), workspace));
      RunChecked(MatmulOf(experts.up, up, x.view(), workspace));
      ApplyGatedActivation(activation, gate.row(0), up.row(0), kRows * kExpertHidden, gate.row(0));
      const Workspace down_workspace(experts.down.matrix().layout, kRows);
      RunChecked(MatmulPartials{.out = expected.view(),
                                .x = gate.view(),
                                .weight = experts.down.matrix(),
                                .workspace = down_workspace.view()});
      ExpectSameBits(expected.view(), out.view());
    }
  }
}

// If this fails, a result's bits change with the number of threads.
TEST_P(GatedExpertsTier, AnyNumberOfThreadsGivesTheSameBits) {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  Experts experts(WeightType::kInt8, {0, 8}, {0, kExperts});
  Floats x = RandomRows(kRows, kHidden);
  std::vector<std::int32_t> offsets = {0, 3, 3, 40, 41, 70, 79};
  Floats expected({1, kRows, 150});
  omp_set_num_threads(1);
  RunChecked(experts.Op(expected.view(), x.view(), offsets));
  for (const int threads : {2, 3, 7}) {
    omp_set_num_threads(threads);
    Floats out({1, kRows, 150});
    RunChecked(experts.Op(out.view(), x.view(), offsets));
    ExpectSameBits(expected.view(), out.view());
  }
  omp_set_num_threads(before);
#else
  GTEST_SKIP() << "built without OpenMP";
#endif
}

// If this fails, gate and down of different shares are combined instead of ending the process.
TEST(GatedExpertsDeathTest, CheckRefusesBrokenOperands) {
  Experts experts(WeightType::kInt8, {0, 8}, {0, 2});
  const Experts other(WeightType::kInt8, {0, 4}, {0, 2});
  Floats x = RandomRows(kRows, kHidden);
  Floats out({1, kRows, 150});
  std::vector<std::int32_t> offsets = {0, 3, 5};
  GatedExperts op = experts.Op(out.view(), x.view(), offsets);
  op.down = other.down.matrix();
  EXPECT_DEATH(Check(op), "check failed");
  op = experts.Op(out.view(), x.view(), offsets);
  offsets = {0, 3, kRows + 1};
  EXPECT_DEATH(Check(op), "check failed");
}

}  // namespace
}  // namespace jubal

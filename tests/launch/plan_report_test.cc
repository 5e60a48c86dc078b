#include "launch/plan_report.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"

namespace jubal {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::int64_t kGB = 1'000'000'000;

Options With(std::int64_t device_memory) {
  Options options;
  options.device_memory = device_memory;
  return options;
}

/// What CheckFits says; empty if the model fits.
std::string Complaint(const ModelSource& source, const Options& options, int ranks) {
  try {
    CheckFits(source, options, MakePlanReport(source, options, ranks));
    return "";
  } catch (const UserError& error) {
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    return error.what();
  }
}

class Grok1Plan : public ::testing::TestWithParam<int> {};

TEST_P(Grok1Plan, AddsUp) {
  const ModelSource source = OpenOrPublished("grok-1");
  const PlanReport report = MakePlanReport(source, Options(), GetParam());
  ASSERT_EQ(report.ranks.size(), static_cast<std::size_t>(GetParam()));
  std::int64_t total = 0;
  std::int64_t experts = 0;
  for (const MemoryPlan& memory : report.ranks) {
    std::int64_t lines = 0;
    for (const MemoryLine& line : memory.lines) lines += line.bytes;
    EXPECT_EQ(lines, memory.total());
    EXPECT_EQ(memory.total(), memory.weight_bytes + memory.kv_bytes + memory.activation_bytes +
                                  memory.segment_bytes);
    EXPECT_LE(memory.total(), report.largest());
    total += memory.total();
    experts += BytesOf(memory, "experts");
  }
  EXPECT_EQ(total, report.total_bytes());

  // However they are divided, the experts are 64 layers × 8 × 3 matrices of 6144 × 32768 bytes and
  // their scales.
  const std::int64_t weights = std::int64_t{64} * 8 * 3 * 6144 * 32768;
  EXPECT_GT(experts, weights);
  EXPECT_LT(experts, weights + weights / 500);
}

TEST_P(Grok1Plan, IsTheSameEachTime) {
  const ModelSource source = OpenOrPublished("grok-1");
  EXPECT_EQ(MakePlanReport(source, Options(), GetParam()).total_bytes(),
            MakePlanReport(OpenOrPublished("grok-1"), Options(), GetParam()).total_bytes());
}

INSTANTIATE_TEST_SUITE_P(Ranks, Grok1Plan, ::testing::Range(1, 9));

TEST(PlanReportTest, SaysHowManyRanksFit) {
  const ModelSource source = OpenOrPublished("grok-1");
  const std::string complaint = Complaint(source, With(80 * kGB), 2);
  EXPECT_THAT(complaint, HasSubstr("grok-1 needs 160."));
  EXPECT_THAT(complaint, HasSubstr("with -n 2, but --device-memory is 80.0 GB: use -n 8"));
  EXPECT_EQ(Complaint(source, With(80 * kGB), 8), "");
  // The fewest: with -n 3 a rank would need 121 GB.
  EXPECT_THAT(Complaint(source, With(130 * kGB), 2), HasSubstr("use -n 3"));
}

TEST(PlanReportTest, FitsExactlyAndNotOneByteLess) {
  const ModelSource source = OpenOrPublished("grok-1");
  const std::int64_t largest = MakePlanReport(source, Options(), 8).largest();
  EXPECT_EQ(Complaint(source, With(largest), 8), "");
  EXPECT_NE(Complaint(source, With(largest - 1), 8), "");
}

TEST(PlanReportTest, OffersASmallerKvMemoryThatFits) {
  const ModelSource source = OpenOrPublished("grok-1");
  Options options = With(80 * kGB);  // with -n 4, 1 GiB of keys and values is just too much
  const std::string complaint = Complaint(source, options, 4);
  const std::string words = "--kv-memory ";
  ASSERT_THAT(complaint, HasSubstr(words));
  options.serving.kv_memory = std::stoll(complaint.substr(complaint.find(words) + words.size()));
  EXPECT_EQ(Complaint(source, options, 4), "");
}

TEST(PlanReportTest, SaysWhatIsNeededWhenNothingFits) {
  const ModelSource source = OpenOrPublished("grok-1");
  EXPECT_THAT(Complaint(source, With(10 * kGB), 2), HasSubstr("even with -n 8 it needs 41."));
  EXPECT_THAT(Complaint(source, With(10 * kGB), 8), HasSubstr("more memory"));
}

TEST(PlanReportTest, OffersOnlyRankCountsThatTheDegreesAllow) {
  const ModelSource source = OpenOrPublished("grok-1");
  Options options = With(130 * kGB);
  options.expert_parallel = 2;
  EXPECT_THAT(Complaint(source, options, 2), HasSubstr("use -n 4"));
}

TEST(PlanReportTest, NeedsAPageOfKeysAndValues) {
  Options options;
  options.serving.kv_memory = 1;
  EXPECT_THROW(MakePlanReport(OpenOrPublished("grok-1"), options, 8), UserError);
}

}  // namespace
}  // namespace jubal

#include "runtime/step_plan.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/paged_attention.h"
#include "parallel/communicator.h"

namespace jubal {
namespace {

StepPlan Busy() {
  StepPlan plan;
  plan.groups.resize(3);
  plan.groups[0] = {.tokens = {7, 0, 131071, 5},
                    .positions = {33, 0, 1, 2},
                    .sequences = {0, 1, 1, 1},
                    .page_table = {4, 9, 2, 0},
                    .max_pages = 2,
                    .logit_rows = {0, 3}};
  plan.groups[2] = {.tokens = {1},  // the group between them has nothing to do
                    .positions = {31},
                    .sequences = {0},
                    .page_table = {12},
                    .max_pages = 1,
                    .logit_rows = {}};
  return plan;
}

/// Planned ahead of the tokens that the four logit rows of the previous step draw.
constexpr std::int64_t kPreviousLogitRows = 4;

StepPlan Ahead() {
  StepPlan plan = Busy();
  plan.groups[0].tokens[0] = PendingToken(3);
  plan.groups[2].tokens[0] = PendingToken(0);
  return plan;
}

void ExpectEqual(const StepPlan& a, const StepPlan& b) {
  EXPECT_EQ(a.stop, b.stop);
  ASSERT_EQ(a.groups.size(), b.groups.size());
  for (std::size_t i = 0; i < a.groups.size(); ++i) {
    EXPECT_EQ(a.groups[i].tokens, b.groups[i].tokens);
    EXPECT_EQ(a.groups[i].positions, b.groups[i].positions);
    EXPECT_EQ(a.groups[i].sequences, b.groups[i].sequences);
    EXPECT_EQ(a.groups[i].page_table, b.groups[i].page_table);
    EXPECT_EQ(a.groups[i].max_pages, b.groups[i].max_pages);
    EXPECT_EQ(a.groups[i].logit_rows, b.groups[i].logit_rows);
  }
}

void PutWord(std::vector<std::byte>& bytes, std::size_t index, std::int32_t word) {
  std::memcpy(bytes.data() + index * sizeof(word), &word, sizeof(word));
}

// If this fails, ranks execute another step than the leader planned.
TEST(StepPlanTest, RoundTrip) {
  ExpectEqual(DecodeStepPlan(Encode(Busy())), Busy());
  ExpectEqual(DecodeStepPlan(Encode(StepPlan{})), StepPlan{});
}

// If this fails, a rank decodes another sequence's token.
TEST(StepPlanTest, PendingTokensRoundTrip) {
  EXPECT_EQ(Ahead().num_logit_rows(), 2);
  ExpectEqual(DecodeStepPlan(Encode(Ahead(), kPreviousLogitRows), kPreviousLogitRows), Ahead());
  for (const std::int64_t use : {0, 1, 131071, std::numeric_limits<std::int32_t>::max()}) {
    EXPECT_TRUE(IsPending(PendingToken(use)));
    EXPECT_EQ(UseOfPending(PendingToken(use)), use);
  }
  EXPECT_FALSE(IsPending(0));
}

// If this fails, a rank reads beyond the tokens drawn, or looks an unknown token up in its
// embedding.
TEST(StepPlanTest, PendingTokensThatNothingDrawsAreRefused) {
  const std::vector<std::byte> bytes = Encode(Ahead(), kPreviousLogitRows);
  EXPECT_THROW(DecodeStepPlan(bytes), CommunicationError);
  EXPECT_THROW(DecodeStepPlan(bytes, kPreviousLogitRows - 1), CommunicationError);
  constexpr std::size_t kFirstToken = 6;  // in words
  for (const std::int32_t token :
       {PendingToken(kPreviousLogitRows), std::numeric_limits<std::int32_t>::min()}) {
    std::vector<std::byte> damaged = bytes;
    PutWord(damaged, kFirstToken, token);
    EXPECT_THROW(DecodeStepPlan(damaged, kPreviousLogitRows), CommunicationError) << token;
  }
}

// If this fails, ranks keep waiting in a broadcast when the leader ends the job.
TEST(StepPlanTest, StopRoundTrip) {
  const StepPlan stop{.stop = true, .groups = {}};
  ExpectEqual(DecodeStepPlan(Encode(stop)), stop);
}

// If this fails, a message cut short makes a rank read beyond its buffer.
TEST(StepPlanTest, EveryTruncationIsRefused) {
  const std::vector<std::byte> bytes = Encode(Busy());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<std::byte> cut(bytes.begin(),
                                     bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(DecodeStepPlan(cut), CommunicationError) << size << " bytes";
  }
}

// If this fails, a sender and a receiver that disagree on the format go on with half a plan.
TEST(StepPlanTest, SurplusIsRefused) {
  std::vector<std::byte> bytes = Encode(Busy());
  for (int i = 0; i < 9; ++i) {
    bytes.push_back(std::byte{0});
    EXPECT_THROW(DecodeStepPlan(bytes), CommunicationError);
  }
}

// If this fails, a damaged count makes a rank ask for gigabytes and the kernel kills it.
TEST(StepPlanTest, CountsBeyondTheMessageAreRefused) {
  const std::vector<std::byte> bytes = Encode(Busy());
  // The number of groups, then the first group's tokens, table entries, logit rows, max_pages.
  for (std::size_t word = 1; word <= 5; ++word) {
    for (const std::int32_t count : {std::numeric_limits<std::int32_t>::max(),
                                     std::numeric_limits<std::int32_t>::min(), -1, 1 << 28, 1000}) {
      std::vector<std::byte> damaged = bytes;
      PutWord(damaged, word, count);
      EXPECT_THROW(DecodeStepPlan(damaged), CommunicationError) << "word " << word << " " << count;
    }
  }
}

// If this fails, a damaged plan makes a rank write outside its KV pages or batch: whatever decodes
// must be safe to execute.
TEST(StepPlanTest, DamagedPlansAreRefusedOrSafe) {
  const std::vector<std::byte> bytes = Encode(Ahead(), kPreviousLogitRows);
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 50000; ++i) {
    std::vector<std::byte> damaged = bytes;
    const auto flips = 1 + random() % 4;
    for (unsigned flip = 0; flip < flips; ++flip) {
      damaged[random() % damaged.size()] ^= std::byte{1} << (random() % 8);
    }
    StepPlan plan;
    try {
      plan = DecodeStepPlan(damaged, kPreviousLogitRows);
    } catch (const CommunicationError&) {
      ++refused;
      continue;
    }
    EXPECT_EQ(Encode(plan, kPreviousLogitRows), damaged);
    for (const GroupStep& group : plan.groups) {
      ASSERT_EQ(group.positions.size(), group.tokens.size());
      ASSERT_EQ(group.sequences.size(), group.tokens.size());
      for (std::size_t row = 0; row < group.tokens.size(); ++row) {
        ASSERT_GE(group.tokens[row], PendingToken(kPreviousLogitRows - 1));
        const std::int64_t entry = std::int64_t{group.sequences[row]} * group.max_pages +
                                   group.positions[row] / kPageTokens;
        ASSERT_GE(group.positions[row], 0);
        ASSERT_LT(group.positions[row] / kPageTokens, group.max_pages);
        ASSERT_GE(entry, 0);
        ASSERT_LT(entry, static_cast<std::int64_t>(group.page_table.size()));
      }
      for (const std::int32_t row : group.logit_rows) {
        ASSERT_GE(row, 0);
        ASSERT_LT(row, group.num_tokens());
      }
    }
  }
  EXPECT_GT(refused, 25000);
}

// If this fails, noise on the wire is taken for work.
TEST(StepPlanTest, NoiseIsRefusedOrSafe) {
  std::mt19937 random(2);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> noise(random() % 96);
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random() % 3);
    try {
      EXPECT_EQ(Encode(DecodeStepPlan(noise)), noise);
    } catch (const CommunicationError&) {
    }
  }
}

// If this fails, the fault shows on another rank, far from the scheduler that made it.
TEST(StepPlanDeathTest, EncodeRefusesAPlanThatCannotBeExecuted) {
  StepPlan plan = Busy();
  plan.groups[0].positions[0] = 64;
  EXPECT_DEATH(Encode(plan), "position");
  plan = Busy();
  plan.groups[0].sequences[3] = 2;
  EXPECT_DEATH(Encode(plan), "sequence");
  plan = Busy();
  plan.stop = true;
  EXPECT_DEATH(Encode(plan), "stop");
  EXPECT_DEATH(Encode(Ahead()), "pending");
}

}  // namespace
}  // namespace jubal

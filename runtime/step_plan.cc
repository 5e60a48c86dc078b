#include "runtime/step_plan.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/check.h"
#include "kernels/paged_attention.h"
#include "parallel/communicator.h"

namespace jubal {
namespace {

// A plan is a run of 32-bit words in the machine's byte order (the ranks of a job share one):
//   stop, number of groups, then for each group
//   number of tokens, of table entries, of logit rows; max_pages;
//   tokens, positions, sequences, page_table, logit_rows
constexpr std::int64_t kPlanHeaderWords = 2;
constexpr std::int64_t kGroupHeaderWords = 4;

std::int64_t SizeOf(const std::vector<std::int32_t>& values) {
  return static_cast<std::int64_t>(values.size());
}

/// What keeps the group from being executed within its own arrays, or nullptr.
const char* FaultIn(const GroupStep& group, std::int64_t previous_logit_rows) {
  if (group.positions.size() != group.tokens.size() ||
      group.sequences.size() != group.tokens.size()) {
    return "tokens, positions and sequences differ in number";
  }
  if (group.max_pages < 0) return "max_pages is negative";
  std::int64_t num_sequences = 0;
  if (group.max_pages == 0) {
    if (!group.page_table.empty()) return "page_table has no columns";
  } else {
    if (SizeOf(group.page_table) % group.max_pages != 0) return "page_table is not rectangular";
    num_sequences = SizeOf(group.page_table) / group.max_pages;
  }
  for (const TokenId token : group.tokens) {
    if (IsPending(token) && UseOfPending(token) >= previous_logit_rows) {
      return "a pending token is not drawn by the previous step";
    }
  }
  for (const std::int32_t position : group.positions) {
    if (position < 0 || position >= group.max_pages * kPageTokens) {
      return "a position is beyond its pages";
    }
  }
  for (const std::int32_t sequence : group.sequences) {
    if (sequence < 0 || sequence >= num_sequences) return "a sequence is not in page_table";
  }
  for (const std::int32_t page : group.page_table) {
    if (page < 0) return "a page is negative";
  }
  std::int32_t previous = -1;
  for (const std::int32_t row : group.logit_rows) {
    if (row <= previous) return "logit_rows does not ascend";
    if (row >= group.num_tokens()) return "a logit row is not in the batch";
    previous = row;
  }
  return nullptr;
}

class Writer {
 public:
  explicit Writer(std::int64_t words) {
    bytes_.resize(static_cast<std::size_t>(words) * sizeof(std::int32_t));
  }

  void Put(std::int32_t word) { Put(std::span(&word, 1)); }
  void Put(std::span<const std::int32_t> words) {
    if (words.empty()) return;  // memcpy takes no null pointer
    std::memcpy(bytes_.data() + used_, words.data(), words.size_bytes());
    used_ += words.size_bytes();
  }
  void PutCount(const std::vector<std::int32_t>& values) {
    CHECK_LE(SizeOf(values), INT32_MAX);
    Put(static_cast<std::int32_t>(values.size()));
  }

  std::vector<std::byte> Finish() && {
    CHECK_EQ(used_, bytes_.size());
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
  std::size_t used_ = 0;
};

[[noreturn]] void Refuse(const std::string& fault) {
  throw CommunicationError("the step plan that arrived is damaged: " + fault);
}

/// Allocates nothing that the bytes left do not pay for.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::int64_t words_left() const {
    return static_cast<std::int64_t>(bytes_.size() / sizeof(std::int32_t));
  }
  bool done() const { return bytes_.empty(); }

  std::int32_t Take() {
    std::int32_t word = 0;
    Take(std::span(&word, 1));
    return word;
  }

  std::vector<std::int32_t> Take(std::int32_t count) {
    if (count < 0 || count > words_left()) Refuse("it ends too early");
    std::vector<std::int32_t> words(static_cast<std::size_t>(count));
    Take(std::span(words));
    return words;
  }

 private:
  void Take(std::span<std::int32_t> words) {
    if (words.empty()) return;
    if (words.size_bytes() > bytes_.size()) Refuse("it ends too early");
    std::memcpy(words.data(), bytes_.data(), words.size_bytes());
    bytes_ = bytes_.subspan(words.size_bytes());
  }

  std::span<const std::byte> bytes_;
};

}  // namespace

std::int64_t StepPlan::num_logit_rows() const {
  std::int64_t rows = 0;
  for (const GroupStep& group : groups) rows += SizeOf(group.logit_rows);
  return rows;
}

std::vector<std::byte> Encode(const StepPlan& plan, std::int64_t previous_logit_rows) {
  CHECK(!plan.stop || plan.groups.empty());
  std::int64_t words = kPlanHeaderWords;
  for (const GroupStep& group : plan.groups) {
    const char* fault = FaultIn(group, previous_logit_rows);
    if (fault != nullptr) CheckFailed(__FILE__, __LINE__, fault);
    words += kGroupHeaderWords + SizeOf(group.tokens) + SizeOf(group.positions) +
             SizeOf(group.sequences) + SizeOf(group.page_table) + SizeOf(group.logit_rows);
  }

  Writer writer(words);
  writer.Put(plan.stop ? 1 : 0);
  writer.Put(static_cast<std::int32_t>(plan.groups.size()));
  for (const GroupStep& group : plan.groups) {
    writer.PutCount(group.tokens);
    writer.PutCount(group.page_table);
    writer.PutCount(group.logit_rows);
    writer.Put(group.max_pages);
    writer.Put(group.tokens);
    writer.Put(group.positions);
    writer.Put(group.sequences);
    writer.Put(group.page_table);
    writer.Put(group.logit_rows);
  }
  return std::move(writer).Finish();
}

StepPlan DecodeStepPlan(std::span<const std::byte> bytes, std::int64_t previous_logit_rows) {
  Reader reader(bytes);
  StepPlan plan;
  const std::int32_t stop = reader.Take();
  if (stop != 0 && stop != 1) Refuse("its first word is neither 0 nor 1");
  plan.stop = stop == 1;

  const std::int32_t num_groups = reader.Take();
  if (num_groups < 0 || num_groups > reader.words_left() / kGroupHeaderWords) {
    Refuse("it cannot hold its number of groups");
  }
  if (plan.stop && num_groups != 0) Refuse("it says stop, yet has work");
  plan.groups.resize(static_cast<std::size_t>(num_groups));
  for (GroupStep& group : plan.groups) {
    const std::int32_t num_tokens = reader.Take();
    const std::int32_t table_entries = reader.Take();
    const std::int32_t num_logit_rows = reader.Take();
    group.max_pages = reader.Take();
    group.tokens = reader.Take(num_tokens);
    group.positions = reader.Take(num_tokens);
    group.sequences = reader.Take(num_tokens);
    group.page_table = reader.Take(table_entries);
    group.logit_rows = reader.Take(num_logit_rows);
    const char* fault = FaultIn(group, previous_logit_rows);
    if (fault != nullptr) Refuse(fault);
  }
  if (!reader.done()) Refuse("it has bytes after its end");
  return plan;
}

}  // namespace jubal

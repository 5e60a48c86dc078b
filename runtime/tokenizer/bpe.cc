#include "runtime/tokenizer/bpe.h"

#include <cstdint>
#include <limits>
#include <queue>

#include "kernels/check.h"

namespace jubal {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// A symbol as merging goes on: a merged pair lives on in the left one.
struct Link {
  const char* begin;
  std::uint32_t size;  // 0: merged into a symbol to the left
  std::uint32_t previous;
  std::uint32_t next;
  bool frozen;

  std::string_view text() const { return {begin, size}; }
};

struct Candidate {
  float priority;
  std::uint32_t left;
  std::uint32_t right;
  std::uint32_t size;  // of both symbols, to tell a pair that has changed since
};

struct ComesLater {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.priority < b.priority || (a.priority == b.priority && a.left > b.left);
  }
};

std::vector<Link> LinkUp(std::span<const BpeSymbol> symbols) {
  std::vector<Link> links;
  links.reserve(symbols.size());
  for (const BpeSymbol& symbol : symbols) {
    CHECK(!symbol.text.empty());
    if (!links.empty()) CHECK(links.back().begin + links.back().size == symbol.text.data());
    const auto index = static_cast<std::uint32_t>(links.size());
    links.push_back({.begin = symbol.text.data(),
                     .size = static_cast<std::uint32_t>(symbol.text.size()),
                     .previous = index == 0 ? kNone : index - 1,
                     .next = index + 1 == symbols.size() ? kNone : index + 1,
                     .frozen = symbol.frozen});
  }
  return links;
}

}  // namespace

std::vector<std::string_view> MergePairs(std::span<const BpeSymbol> symbols,
                                         const MergePriority& priority) {
  if (symbols.empty()) return {};
  CHECK_LT(static_cast<std::size_t>(symbols.back().text.data() + symbols.back().text.size() -
                                    symbols.front().text.data()),
           kNone);
  std::vector<Link> links = LinkUp(symbols);

  const auto candidate = [&](std::uint32_t left, std::uint32_t right) -> std::optional<Candidate> {
    if (left == kNone || right == kNone || links[left].frozen || links[right].frozen) return {};
    const std::optional<float> found = priority(links[left].text(), links[right].text());
    if (!found.has_value()) return {};
    return Candidate{*found, left, right, links[left].size + links[right].size};
  };

  std::vector<Candidate> first;
  first.reserve(links.size());
  for (std::uint32_t i = 1; i < links.size(); ++i) {
    if (const auto pair = candidate(i - 1, i)) first.push_back(*pair);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, ComesLater> queue(ComesLater(),
                                                                           std::move(first));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Link& left = links[top.left];
    Link& right = links[top.right];
    if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
    left.size = top.size;
    left.next = right.next;
    right.size = 0;
    if (left.next != kNone) links[left.next].previous = top.left;
    if (const auto pair = candidate(left.previous, top.left)) queue.push(*pair);
    if (const auto pair = candidate(top.left, left.next)) queue.push(*pair);
  }

  std::vector<std::string_view> merged;
  for (std::uint32_t i = 0; i != kNone; i = links[i].next) merged.push_back(links[i].text());
  return merged;
}

}  // namespace jubal

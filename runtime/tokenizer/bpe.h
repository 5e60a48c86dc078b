#ifndef JUBAL_RUNTIME_TOKENIZER_BPE_H_
#define JUBAL_RUNTIME_TOKENIZER_BPE_H_

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace jubal {

struct BpeSymbol {
  std::string_view text;  // not empty
  bool frozen = false;    // never merged with a neighbour
};

/// The priority of merging two adjacent symbols, none if they do not merge. It depends on the two
/// texts only, which lie next to each other in memory. Scores serve as they are, ranks negated.
using MergePriority =
    std::function<std::optional<float>(std::string_view left, std::string_view right)>;

/// Merges, as long as any two neighbours merge, the pair with the highest priority (the leftmost
/// of equals), and returns what is left, in order. The symbols cut one text without gaps, in
/// fewer than 2^32 bytes; the result points into that text.
///
/// `priority` is asked in a fixed order: about all neighbours from left to right, then, after each
/// merge, about the merged symbol with its left and then with its right neighbour.
///
/// Takes O(n log n) time and O(n) memory for n symbols, and at most 3n questions. Thread-safe.
std::vector<std::string_view> MergePairs(std::span<const BpeSymbol> symbols,
                                         const MergePriority& priority);

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TOKENIZER_BPE_H_

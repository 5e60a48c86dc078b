#ifndef JUBAL_RUNTIME_TOKENIZER_TOKENIZER_H_
#define JUBAL_RUNTIME_TOKENIZER_TOKENIZER_H_

#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/token.h"
#include "runtime/tokenizer/bpe.h"

namespace jubal {

namespace sentencepiece {
class Model;
}

/// A SentencePiece BPE model: text to token ids and back, as the sentencepiece library does it.
/// All const members are thread-safe.
///
/// Not supported, and refused when read: unigram, word and character models, character maps
/// (normalizers other than `identity`), whitespace as a suffix.
class Tokenizer {
 public:
  /// Reads a .model file of up to 64 MiB. Throws UserError: kNoInput for a file that is missing or
  /// unreadable, kBadData for one that is no model of the supported kind.
  static Tokenizer FromFile(const std::filesystem::path& path);

  /// As FromFile, from the file's bytes; `name` stands for the file in messages.
  static Tokenizer FromBytes(std::string_view model, std::string_view name);

  Tokenizer(Tokenizer&&) = default;
  Tokenizer& operator=(Tokenizer&&) = default;

  /// Ids are 0 to this, exclusive; at most 2^20. A model may have more rows than its tokenizer has
  /// pieces: below, an id from here on stands for a piece without text.
  int vocabulary_size() const { return static_cast<int>(pieces_.size()); }

  /// The tokens of `text`, with no bos or eos added. Text never yields a control token, whatever
  /// it spells. `text` is at most 1 GiB. Takes O(n log n) time. Throws UserError(kBadData), naming
  /// the byte, if `text` is not UTF-8.
  std::vector<TokenId> Encode(std::string_view text) const;

  /// The text of a whole token sequence: without the space that encoding puts before it, and with
  /// U+FFFD for each byte that byte tokens leave outside a code point. Always UTF-8.
  std::string Decode(std::span<const TokenId> tokens) const;

  /// The bytes that one token contributes within a text, before a text's first space is dropped:
  /// a single byte, perhaps not UTF-8, for a byte token; none for a control token. `token` >= 0;
  /// the view lives as long as the tokenizer.
  std::string_view PieceText(TokenId token) const { return PieceOf(token).text; }

  /// Whether a token, for instance the end of text, is a signal without text. `token` >= 0.
  bool IsControl(TokenId token) const { return PieceOf(token).kind == Kind::kControl; }

  /// Whether a token is one byte of a code point that has no piece. `token` >= 0.
  bool IsByte(TokenId token) const { return PieceOf(token).kind == Kind::kByte; }

  /// The special tokens, none where the model does not define them.
  std::optional<TokenId> bos() const { return bos_; }
  std::optional<TokenId> eos() const { return eos_; }
  std::optional<TokenId> pad() const { return pad_; }

  /// What an unknown character becomes in a model without byte tokens.
  TokenId unk() const { return unk_; }

  /// Which leading spaces a decoded text does without: those of the first piece or of all pieces
  /// up to the first other text.
  enum class LeadingSpace { kKept, kFirstDropped, kAllDropped };
  LeadingSpace leading_space() const { return leading_space_; }

  /// Whether a token's text begins with the kind of space that `leading_space` is about.
  /// `token` >= 0.
  bool HasLeadingSpace(TokenId token) const { return PieceOf(token).leading_space; }

 private:
  enum class Kind { kText, kUnknown, kControl, kByte };

  struct Piece {
    Kind kind = Kind::kControl;
    bool leading_space = false;
    std::string text;
  };

  // What merging two symbols into a piece needs to know.
  struct Entry {
    TokenId id;
    float score;
    bool unused;  // taken apart again after merging
  };

  struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };

  Tokenizer() = default;

  void AddPieces(const sentencepiece::Model& model, std::string_view name);
  const Piece& PieceOf(TokenId token) const;
  const Entry* Find(std::string_view piece) const;
  std::string Normalize(std::string_view text) const;
  std::vector<BpeSymbol> Split(std::string_view normalized) const;
  std::size_t UserDefinedSize(std::string_view text) const;

  std::vector<Piece> pieces_;  // by id
  std::unordered_map<std::string, Entry, StringHash, std::equal_to<>> entries_;
  std::size_t longest_entry_ = 0;                // bytes
  std::vector<std::string> user_defined_;        // sorted
  std::array<bool, 256> starts_user_defined_{};  // by first byte
  std::array<TokenId, 256> byte_tokens_{};
  bool byte_fallback_ = false;
  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
  std::string space_;  // how a space is written in pieces
  LeadingSpace leading_space_ = LeadingSpace::kKept;
  TokenId unk_ = 0;
  std::optional<TokenId> bos_;
  std::optional<TokenId> eos_;
  std::optional<TokenId> pad_;
};

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TOKENIZER_TOKENIZER_H_

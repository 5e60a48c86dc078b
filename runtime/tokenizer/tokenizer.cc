#include "runtime/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/tokenizer/sentencepiece_model.pb.h"
#include "runtime/tokenizer/streaming_decoder.h"
#include "runtime/tokenizer/utf8.h"

namespace jubal {
namespace {

using ModelProto = sentencepiece::Model;
using PieceProto = ModelProto::Piece;

constexpr std::uintmax_t kMaxFileSize = 64 << 20;
constexpr int kMaxPieces = 1 << 20;
constexpr std::string_view kSpaceMark = "\u2581";

[[noreturn]] void Refuse(std::string_view name, std::string_view fault) {
  throw UserError(ExitStatus::kBadData, fmt::format("{}: {}.", name, fault));
}

// The byte that a piece named like `<0x0A>` stands for.
std::optional<std::uint8_t> ByteOf(std::string_view piece) {
  if (piece.size() != std::string_view("<0x0A>").size()) return std::nullopt;
  std::uint8_t byte = 0;
  std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
  if (piece != fmt::format("<0x{:02X}>", byte)) return std::nullopt;
  return byte;
}

std::string WithSpaces(std::string_view piece) {
  std::string text;
  for (std::size_t i = 0; i < piece.size();) {
    const bool mark = piece.substr(i).starts_with(kSpaceMark);
    text += mark ? ' ' : piece[i];
    i += mark ? kSpaceMark.size() : 1;
  }
  return text;
}

ModelProto Parse(std::string_view bytes, std::string_view name) {
  ModelProto model;
  if (bytes.size() > kMaxFileSize ||
      !model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    Refuse(name, "not a SentencePiece model");
  }
  if (!model.has_trainer_spec()) Refuse(name, "a SentencePiece model that is cut off");
  const ModelProto::Trainer& trainer = model.trainer_spec();
  if (trainer.model_type() != ModelProto::Trainer::BPE) {
    Refuse(name, fmt::format("a SentencePiece model of type {}, of which only BPE is supported",
                             ModelProto::Trainer::ModelType_Name(trainer.model_type())));
  }
  if (trainer.treat_whitespace_as_suffix()) {
    Refuse(name, "whitespace as a suffix (treat_whitespace_as_suffix) is not supported");
  }
  if (!model.normalizer_spec().precompiled_charsmap().empty()) {
    Refuse(name, fmt::format("normalizer '{}' has a character map; only 'identity' is supported",
                             model.normalizer_spec().name()));
  }
  if (!model.denormalizer_spec().precompiled_charsmap().empty()) {
    Refuse(name, "a denormalizer with a character map is not supported");
  }
  if (model.pieces_size() > kMaxPieces) {
    Refuse(name, fmt::format("{} pieces exceed the limit of {}", model.pieces_size(), kMaxPieces));
  }
  return model;
}

// The id of each piece. Refuses pieces that no text can tell apart or that are no text.
std::unordered_map<std::string_view, TokenId> IdsByPiece(const ModelProto& model,
                                                         std::string_view name) {
  std::unordered_map<std::string_view, TokenId> ids;
  for (TokenId id = 0; id < model.pieces_size(); ++id) {
    const std::string& piece = model.pieces(id).piece();
    if (piece.empty()) Refuse(name, fmt::format("piece {} is empty", id));
    if (WellFormedUtf8Size(piece) != piece.size()) {
      Refuse(name, fmt::format("piece {} is not UTF-8", id));
    }
    if (!std::isfinite(model.pieces(id).score())) {
      Refuse(name, fmt::format("the score of piece {} is not finite", id));
    }
    const auto [other, is_new] = ids.emplace(piece, id);
    if (!is_new) Refuse(name, fmt::format("piece {} repeats piece {}", id, other->second));
  }
  return ids;
}

}  // namespace

Tokenizer Tokenizer::FromFile(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    throw UserError(ExitStatus::kNoInput,
                    fmt::format("{}: no tokenizer model can be read here.", path.string()));
  }
  if (size > kMaxFileSize) {
    Refuse(path.string(), fmt::format("{} bytes are too many for a tokenizer model", size));
  }
  std::string bytes(size, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(size));
  if (!file) {
    throw UserError(ExitStatus::kNoInput, fmt::format("{}: reading failed.", path.string()));
  }
  return FromBytes(bytes, path.string());
}

Tokenizer Tokenizer::FromBytes(std::string_view bytes, std::string_view name) {
  const ModelProto model = Parse(bytes, name);
  const auto ids = IdsByPiece(model, name);
  Tokenizer tokenizer;
  tokenizer.byte_fallback_ = model.trainer_spec().byte_fallback();
  tokenizer.AddPieces(model, name);

  const auto& normalizer = model.normalizer_spec();
  tokenizer.add_dummy_prefix_ = normalizer.add_dummy_prefix();
  tokenizer.remove_extra_whitespaces_ = normalizer.remove_extra_whitespaces();
  tokenizer.space_ = normalizer.escape_whitespaces() ? kSpaceMark : " ";
  if (normalizer.remove_extra_whitespaces()) {
    tokenizer.leading_space_ = LeadingSpace::kAllDropped;
  } else if (normalizer.add_dummy_prefix()) {
    tokenizer.leading_space_ = LeadingSpace::kFirstDropped;
  }

  const auto special = [&](const std::string& piece) -> std::optional<TokenId> {
    const auto found = ids.find(piece);
    if (found == ids.end() || found->second == tokenizer.unk_) return std::nullopt;
    return found->second;
  };
  tokenizer.bos_ = special(model.trainer_spec().bos_piece());
  tokenizer.eos_ = special(model.trainer_spec().eos_piece());
  tokenizer.pad_ = special(model.trainer_spec().pad_piece());
  return tokenizer;
}

void Tokenizer::AddPieces(const ModelProto& model, std::string_view name) {
  std::optional<TokenId> unknown;
  int bytes = 0;
  for (TokenId id = 0; id < model.pieces_size(); ++id) {
    const PieceProto& proto = model.pieces(id);
    Piece piece;
    switch (proto.type()) {
      case PieceProto::CONTROL:
        break;
      case PieceProto::UNKNOWN:
        if (unknown) Refuse(name, fmt::format("pieces {} and {} are both unknown", *unknown, id));
        unknown = id;
        piece.kind = Kind::kUnknown;
        piece.text = model.trainer_spec().unk_surface();
        if (WellFormedUtf8Size(piece.text) != piece.text.size()) {
          Refuse(name, "the text of the unknown piece (unk_surface) is not UTF-8");
        }
        break;
      case PieceProto::BYTE: {
        const std::optional<std::uint8_t> byte = ByteOf(proto.piece());
        if (!byte) Refuse(name, fmt::format("piece {} names no byte", id));
        if (!byte_fallback_) Refuse(name, fmt::format("byte piece {} without byte_fallback", id));
        byte_tokens_[*byte] = id;
        ++bytes;
        piece.kind = Kind::kByte;
        piece.text = static_cast<char>(*byte);
        break;
      }
      case PieceProto::USER_DEFINED:
        user_defined_.push_back(proto.piece());
        starts_user_defined_[static_cast<std::uint8_t>(proto.piece().front())] = true;
        [[fallthrough]];
      case PieceProto::NORMAL:
      case PieceProto::UNUSED:
        piece.kind = Kind::kText;
        piece.leading_space = proto.piece().starts_with(kSpaceMark);
        piece.text = WithSpaces(proto.piece());
        longest_entry_ = std::max(longest_entry_, proto.piece().size());
        entries_.emplace(proto.piece(),
                         Entry{id, proto.score(), proto.type() == PieceProto::UNUSED});
        break;
    }
    pieces_.push_back(std::move(piece));
  }
  if (!unknown) Refuse(name, "no piece is marked unknown");
  unk_ = *unknown;
  if (byte_fallback_ && bytes != 256) {
    Refuse(name, fmt::format("byte_fallback needs 256 byte pieces, of which {} are here", bytes));
  }
  std::ranges::sort(user_defined_);
}

const Tokenizer::Piece& Tokenizer::PieceOf(TokenId token) const {
  CHECK_GE(token, 0);
  static const Piece kWithoutText;
  return token < vocabulary_size() ? pieces_[static_cast<std::size_t>(token)] : kWithoutText;
}

const Tokenizer::Entry* Tokenizer::Find(std::string_view piece) const {
  if (piece.size() > longest_entry_) return nullptr;
  const auto found = entries_.find(piece);
  return found == entries_.end() ? nullptr : &found->second;
}

// Bytes of the longest user-defined piece that `text` begins with; 0 if none does.
std::size_t Tokenizer::UserDefinedSize(std::string_view text) const {
  if (text.empty() || !starts_user_defined_[static_cast<std::uint8_t>(text[0])]) return 0;
  std::size_t longest = 0;
  // The pieces that agree with `text` up to `size`, narrowed byte by byte; the one that ends there
  // sorts first.
  auto begin = user_defined_.begin();
  auto end = user_defined_.end();
  for (std::size_t size = 0; begin != end; ++size) {
    if (begin->size() == size) {
      longest = size;
      ++begin;
    }
    if (size == text.size()) break;
    const auto wanted = static_cast<std::uint8_t>(text[size]);
    const auto byte = [size](const std::string& piece) {
      return static_cast<std::uint8_t>(piece[size]);
    };
    begin = std::partition_point(begin, end, [&](const auto& p) { return byte(p) < wanted; });
    end = std::partition_point(begin, end, [&](const auto& p) { return byte(p) == wanted; });
  }
  return longest;
}

std::string Tokenizer::Normalize(std::string_view text) const {
  if (remove_extra_whitespaces_) {
    while (text.starts_with(' ') && UserDefinedSize(text) <= 1) text.remove_prefix(1);
  }
  std::string normalized;
  if (text.empty()) return normalized;
  normalized.reserve(text.size() + text.size() / 2);
  if (add_dummy_prefix_) normalized += space_;
  bool after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    std::string_view unit =
        text.substr(0, std::max(UserDefinedSize(text), Utf8CodePointSize(text)));
    text.remove_prefix(unit.size());
    while (after_space && unit.starts_with(' ')) unit.remove_prefix(1);
    if (unit.empty()) continue;
    for (const char byte : unit) {
      if (byte == ' ') {
        normalized += space_;
      } else {
        normalized += byte;
      }
    }
    after_space = remove_extra_whitespaces_ && unit.ends_with(' ');
  }
  if (remove_extra_whitespaces_) {
    while (normalized.ends_with(space_)) normalized.resize(normalized.size() - space_.size());
  }
  return normalized;
}

std::vector<BpeSymbol> Tokenizer::Split(std::string_view normalized) const {
  std::vector<BpeSymbol> symbols;
  symbols.reserve(normalized.size());
  while (!normalized.empty()) {
    const std::size_t user_defined = UserDefinedSize(normalized);
    const bool frozen = user_defined > 0;
    const std::size_t size = frozen ? user_defined : Utf8CodePointSize(normalized);
    symbols.push_back({normalized.substr(0, size), frozen});
    normalized.remove_prefix(size);
  }
  return symbols;
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text) const {
  if (const std::size_t size = WellFormedUtf8Size(text); size != text.size()) {
    throw UserError(ExitStatus::kBadData, fmt::format("The text is not UTF-8 at byte {}.", size));
  }
  const std::string normalized = Normalize(text);

  // An unused piece takes part in merging; afterwards it is taken apart into the two symbols last
  // seen to make it up, wherever they were.
  std::unordered_map<std::string_view, std::size_t> left_sizes_of_unused;
  const auto priority = [&](std::string_view left, std::string_view right) -> std::optional<float> {
    const std::string_view merged(left.data(), left.size() + right.size());
    const Entry* entry = Find(merged);
    if (entry == nullptr) return std::nullopt;
    if (entry->unused) left_sizes_of_unused[merged] = left.size();
    return entry->score;
  };
  std::vector<std::string_view> symbols = MergePairs(Split(normalized), priority);

  std::vector<TokenId> tokens;
  tokens.reserve(symbols.size());
  bool after_unknown = false;
  std::ranges::reverse(symbols);  // now a stack: the next symbol is at the back
  while (!symbols.empty()) {
    const std::string_view symbol = symbols.back();
    symbols.pop_back();
    const Entry* entry = Find(symbol);
    if (entry != nullptr && entry->unused) {
      if (const auto left = left_sizes_of_unused.find(symbol); left != left_sizes_of_unused.end()) {
        symbols.push_back(symbol.substr(left->second));
        symbols.push_back(symbol.substr(0, left->second));
        continue;
      }
      entry = nullptr;  // a single code point: as if it had no piece
    }
    if (entry != nullptr) {
      tokens.push_back(entry->id);
    } else if (byte_fallback_) {
      for (const char byte : symbol) {
        tokens.push_back(byte_tokens_[static_cast<std::uint8_t>(byte)]);
      }
    } else if (!after_unknown) {
      tokens.push_back(unk_);  // one for a run of them
    }
    after_unknown = entry == nullptr;
  }
  return tokens;
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens) const {
  StreamingDecoder decoder(*this, /*continues_text=*/false);
  std::string text;
  for (const TokenId token : tokens) text += decoder.Append(token);
  return text + decoder.Finish();
}

}  // namespace jubal

#ifndef JUBAL_TESTS_RUNTIME_TOKENIZER_TINY_MODEL_H_
#define JUBAL_TESTS_RUNTIME_TOKENIZER_TINY_MODEL_H_

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "runtime/tokenizer/sentencepiece_model.pb.h"
#include "runtime/tokenizer/tokenizer.h"

namespace jubal {

/// A SentencePiece BPE model made by hand: each piece takes the next id.
class TinyModel {
 public:
  using Piece = sentencepiece::Model::Piece;

  /// Ids 0, 1 and 2: the usual special pieces. The normalizer keeps every space and adds none.
  TinyModel() {
    proto.mutable_trainer_spec()->set_model_type(sentencepiece::Model::Trainer::BPE);
    proto.mutable_normalizer_spec()->set_add_dummy_prefix(false);
    proto.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);
    Add("<unk>", 0, Piece::UNKNOWN).Add("<s>", 0, Piece::CONTROL).Add("</s>", 0, Piece::CONTROL);
  }

  TinyModel& Add(std::string_view piece, float score = 0, Piece::Type type = Piece::NORMAL) {
    Piece* added = proto.add_pieces();
    added->set_piece(std::string(piece));
    added->set_score(score);
    added->set_type(type);
    return *this;
  }

  /// Pieces without a score, all of one type.
  TinyModel& AddAll(std::initializer_list<std::string_view> pieces,
                    Piece::Type type = Piece::NORMAL) {
    for (const std::string_view piece : pieces) Add(piece, 0, type);
    return *this;
  }

  /// The 256 byte pieces, in order.
  TinyModel& AddBytes() {
    proto.mutable_trainer_spec()->set_byte_fallback(true);
    for (int byte = 0; byte < 256; ++byte) Add(fmt::format("<0x{:02X}>", byte), 0, Piece::BYTE);
    return *this;
  }

  std::string Bytes() const { return proto.SerializeAsString(); }
  Tokenizer Build() const { return Tokenizer::FromBytes(Bytes(), "tiny.model"); }

  sentencepiece::Model proto;
};

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_TOKENIZER_TINY_MODEL_H_

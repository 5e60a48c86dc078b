#ifndef JUBAL_TESTS_RUNTIME_CHECKPOINT_CKPT0_WRITER_H_
#define JUBAL_TESTS_RUNTIME_CHECKPOINT_CKPT0_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"

namespace jubal {

struct WrittenArray {
  DType dtype = DType::kF32;  // or kI8 or kBf16
  std::vector<std::int64_t> shape;
};

/// Writes the files of the published Grok-1 checkpoint byte for byte as CPython's protocol 4 and
/// NumPy 1 did, except for the payloads: those stay holes, so a 3 GB file costs nothing to model.
class Ckpt0Writer {
 public:
  /// A plain array, or a QuantizedWeight8bit when `scales` is given.
  explicit Ckpt0Writer(const WrittenArray& weight,
                       const std::optional<WrittenArray>& scales = std::nullopt);

  /// What stands before, between and after the payloads.
  const std::vector<std::string>& pieces() const { return pieces_; }
  /// The file, each payload made of bytes 1, 2, 3 ...
  std::string File() const;

 private:
  void Op(int opcode) { pieces_.back().push_back(static_cast<char>(opcode)); }
  void Number(std::uint64_t number, int bytes);
  void Memoize(const std::string& key = "");
  bool Remembered(const std::string& key);
  void Int(std::int64_t number);
  void Text(const std::string& text);
  void Global(const std::string& module, const std::string& name);
  void Dtype(DType dtype);
  void Array(const WrittenArray& array);
  void Payload(std::size_t length);
  void OpenFrame();
  void CloseFrame();
  std::size_t Size() const;

  std::vector<std::string> pieces_{""};
  std::vector<std::size_t> payloads_;
  std::map<std::string, int> memo_;
  int memo_size_ = 0;
  std::size_t frame_piece_ = 0;  // where the open frame's length goes
  std::size_t frame_place_ = 0;
  std::size_t frame_begin_ = 0;
};

inline Ckpt0Writer::Ckpt0Writer(const WrittenArray& weight,
                                const std::optional<WrittenArray>& scales) {
  Op(0x80);  // PROTO
  Op(4);
  OpenFrame();
  if (scales) {
    Global("__main__", "QuantizedWeight8bit");
    Op(')');
    Op(0x81);  // NEWOBJ
    Memoize();
    Op('}');
    Memoize();
    Op('(');
    Text("weight");
    Array(weight);
    Text("scales");
    Array(*scales);
    Op('u');  // SETITEMS
    Op('b');  // BUILD
  } else {
    Array(weight);
  }
  Op('.');
  CloseFrame();
}

inline std::string Ckpt0Writer::File() const {
  std::string file;
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    file += pieces_[i];
    for (std::size_t k = 0; i < payloads_.size() && k < payloads_[i]; ++k) {
      file.push_back(static_cast<char>(k + 1));
    }
  }
  return file;
}

inline void Ckpt0Writer::Number(std::uint64_t number, int bytes) {
  for (int i = 0; i < bytes; ++i) Op(static_cast<int>(number >> (8 * i) & 0xff));
}

inline void Ckpt0Writer::Memoize(const std::string& key) {
  Op(0x94);
  if (!key.empty()) memo_[key] = memo_size_;
  ++memo_size_;
}

inline bool Ckpt0Writer::Remembered(const std::string& key) {
  const auto found = memo_.find(key);
  if (found == memo_.end()) return false;
  Op('h');  // BINGET
  Op(found->second);
  return true;
}

inline void Ckpt0Writer::Int(std::int64_t number) {
  if (number >= 0 && number < 256) {
    Op('K');
    Number(static_cast<std::uint64_t>(number), 1);
  } else if (number >= 0 && number < 65536) {
    Op('M');
    Number(static_cast<std::uint64_t>(number), 2);
  } else {
    Op('J');
    Number(static_cast<std::uint64_t>(number), 4);
  }
}

inline void Ckpt0Writer::Text(const std::string& text) {
  const std::string key = "text " + text;
  if (Remembered(key)) return;
  Op(0x8c);  // SHORT_BINUNICODE
  Number(text.size(), 1);
  pieces_.back() += text;
  Memoize(key);
}

inline void Ckpt0Writer::Global(const std::string& module, const std::string& name) {
  const std::string key = "global " + module + " " + name;
  if (Remembered(key)) return;
  Text(module);
  Text(name);
  Op(0x93);  // STACK_GLOBAL
  Memoize(key);
}

inline void Ckpt0Writer::Dtype(DType dtype) {
  Global("numpy", "dtype");
  if (dtype == DType::kBf16) {
    Global("ml_dtypes", "bfloat16");
  } else {
    Text(dtype == DType::kI8 ? "i1" : "f4");
  }
  Op(0x89);  // NEWFALSE
  Op(0x88);  // NEWTRUE
  Op(0x87);  // TUPLE3
  Memoize();
  Op('R');
  Memoize();
  Op('(');
  Int(3);
  Text(dtype == DType::kI8 ? "|" : "<");
  for (int i = 0; i < 3; ++i) Op('N');
  Int(dtype == DType::kBf16 ? 2 : -1);
  Int(dtype == DType::kBf16 ? 2 : -1);
  Int(dtype == DType::kBf16 ? 64 : 0);
  Op('t');
  Memoize();
  Op('b');
}

inline void Ckpt0Writer::Array(const WrittenArray& array) {
  Global("numpy.core.multiarray", "_reconstruct");
  Global("numpy", "ndarray");
  Int(0);
  Op(0x85);  // TUPLE1
  Memoize();
  if (!Remembered("bytes b")) {
    Op('C');  // SHORT_BINBYTES
    Op(1);
    Op('b');
    Memoize("bytes b");
  }
  Op(0x87);  // TUPLE3
  Memoize();
  Op('R');
  Memoize();
  Op('(');
  Int(1);
  std::size_t length = static_cast<std::size_t>(SizeOf(array.dtype));
  for (const std::int64_t size : array.shape) {
    Int(size);
    length *= static_cast<std::size_t>(size);
  }
  Op(0x84 + static_cast<int>(array.shape.size()));  // TUPLE1 to TUPLE3
  Memoize();
  Dtype(array.dtype);
  Op(0x89);  // NEWFALSE: C order
  Payload(length);
  Memoize();
  Op('t');
  Memoize();
  Op('b');
}

inline void Ckpt0Writer::Payload(std::size_t length) {
  const bool outside_frame = length >= 65536;
  if (outside_frame) CloseFrame();
  Op(length < 256 ? 'C' : 'B');
  Number(length, length < 256 ? 1 : 4);
  payloads_.push_back(length);
  pieces_.emplace_back();
  if (outside_frame) OpenFrame();
}

inline void Ckpt0Writer::OpenFrame() {
  Op(0x95);
  frame_piece_ = pieces_.size() - 1;
  frame_place_ = pieces_.back().size();
  Number(0, 8);
  frame_begin_ = Size();
}

inline void Ckpt0Writer::CloseFrame() {
  const std::size_t length = Size() - frame_begin_;
  for (std::size_t i = 0; i < 8; ++i) {
    pieces_[frame_piece_][frame_place_ + i] = static_cast<char>(length >> (8 * i) & 0xff);
  }
}

inline std::size_t Ckpt0Writer::Size() const {
  std::size_t size = 0;
  for (const std::string& piece : pieces_) size += piece.size();
  for (const std::size_t payload : payloads_) size += payload;
  return size;
}

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_CHECKPOINT_CKPT0_WRITER_H_

#include "runtime/checkpoint/pickle.h"

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/error.h"

namespace jubal {
namespace {

// The published files need a stack of 20, 40 memo entries and 131 opcodes.
constexpr std::size_t kMaxStack = 64;
constexpr std::size_t kMaxMemo = 4096;
constexpr std::size_t kMaxString = 256;
constexpr int kMaxOpcodes = 100'000;

enum class Opcode : std::uint8_t {
  kMark = '(',
  kEmptyTuple = ')',
  kStop = '.',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kReduce = 'R',
  kBinUnicode = 'X',
  kBuild = 'b',
  kGlobal = 'c',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kBinBytes8 = 0x8e,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

/// Python's names of the opcodes that only a file we refuse would use, for its message.
constexpr std::pair<std::uint8_t, std::string_view> kRefusedOpcodes[] = {
    {'0', "POP"},          {'1', "POP_MARK"},
    {'2', "DUP"},          {'F', "FLOAT"},
    {'G', "BINFLOAT"},     {'I', "INT"},
    {'L', "LONG"},         {'P', "PERSID"},
    {'Q', "BINPERSID"},    {'S', "STRING"},
    {'T', "BINSTRING"},    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},      {']', "EMPTY_LIST"},
    {'a', "APPEND"},       {'d', "DICT"},
    {'e', "APPENDS"},      {'g', "GET"},
    {'i', "INST"},         {'l', "LIST"},
    {'o', "OBJ"},          {'p', "PUT"},
    {0x82, "EXT1"},        {0x83, "EXT2"},
    {0x84, "EXT4"},        {0x8b, "LONG4"},
    {0x8d, "BINUNICODE8"}, {0x8f, "EMPTY_SET"},
    {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
    {0x92, "NEWOBJ_EX"},   {0x96, "BYTEARRAY8"},
    {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"},
};

std::string_view RefusedOpcodeName(std::uint8_t opcode) {
  for (const auto& [value, name] : kRefusedOpcodes) {
    if (value == opcode) return name;
  }
  return "unknown";
}

/// The whole world of a checkpoint's pickle: names, never callables.
enum class Global : std::uint8_t { kReconstruct, kNdarray, kDtype, kBfloat16, kQuantizedWeight };

struct GlobalName {
  std::string_view module;
  std::string_view name;
  Global global;
};

constexpr GlobalName kGlobals[] = {
    {"__main__", "QuantizedWeight8bit", Global::kQuantizedWeight},
    {"model", "QuantizedWeight8bit", Global::kQuantizedWeight},
    {"numpy.core.multiarray", "_reconstruct", Global::kReconstruct},
    {"numpy._core.multiarray", "_reconstruct", Global::kReconstruct},  // NumPy 2
    {"numpy", "ndarray", Global::kNdarray},
    {"numpy", "dtype", Global::kDtype},
    {"ml_dtypes", "bfloat16", Global::kBfloat16},
};

struct Mark {};
struct None {};
struct Text {
  std::string_view text;  // in the file
};
struct Bytes {
  std::size_t offset;  // in the file
  std::size_t length;
};
struct Tuple {
  std::size_t begin;  // of its items in PickleMachine::tuple_items_
  std::size_t count;
};
/// An object that BUILD or SETITEMS changes: `index` is its place among its kind, so all copies of
/// the reference, on the stack and in the memo, see the change.
template <class Object>
struct Reference {
  std::size_t index;
};

struct DtypeObject {
  DType dtype;
  bool built = false;
};
struct ArrayObject {
  StoredArray array;
  bool built = false;
};
struct PairObject {  // of arrays: a QuantizedWeight8bit's state, and the dict that brings it
  std::optional<std::size_t> weight;  // indices of ArrayObjects
  std::optional<std::size_t> scales;
};
struct DictObject : PairObject {};
struct QuantizedObject : PairObject {
  bool built = false;
};

using Value =
    std::variant<Mark, None, bool, std::int64_t, Text, Bytes, Tuple, Global, Reference<DtypeObject>,
                 Reference<ArrayObject>, Reference<DictObject>, Reference<QuantizedObject>>;

class PickleMachine {
 public:
  PickleMachine(std::span<const std::byte> file, std::string_view file_name)
      : file_(file), file_name_(file_name) {}

  PickledWeight Run();

 private:
  /// `what` goes on after "at byte N ".
  [[noreturn]] void Fail(const std::string& what) const;

  // The file, from position_ on.
  Bytes Take(std::uint64_t length);
  std::uint64_t TakeUnsigned(int bytes);  // little-endian
  std::string_view TakeText(std::uint64_t length);
  std::string_view TakeLine();

  // The stack. A popped value is never a mark.
  void Push(Value value);
  Value Pop();
  template <class T>
  T PopAs(std::string_view what);
  std::size_t TopMark() const;  // the index of the topmost mark
  void PushTuple(std::size_t begin);

  // The memo.
  const Value& Top() const;
  void Put(std::uint64_t index);
  void Get(std::uint64_t index);

  // Items of tuples.
  std::span<const Value> Items(Tuple tuple) const {
    return std::span(tuple_items_).subspan(tuple.begin, tuple.count);
  }

  void Step(Opcode opcode);
  void PushGlobal(std::string_view module, std::string_view name);
  void Reduce();
  void NewObject();
  void Build();
  void BuildDtype(DtypeObject& dtype, const Value& state);
  void BuildArray(ArrayObject& array, const Value& state);
  void BuildQuantized(QuantizedObject& quantized, const Value& state);
  void SetItem(DictObject& dict, const Value& key, const Value& value);
  PickledWeight Finish();

  std::span<const std::byte> file_;
  std::string_view file_name_;
  std::size_t position_ = 0;
  std::size_t opcode_position_ = 0;

  std::vector<Value> stack_;
  std::vector<std::optional<Value>> memo_;
  std::size_t memo_entries_ = 0;
  std::vector<Value> tuple_items_;  // of every tuple so far: tuples never change

  std::vector<DtypeObject> dtypes_;
  std::vector<ArrayObject> arrays_;
  std::vector<DictObject> dicts_;
  std::vector<QuantizedObject> quantized_;
};

void PickleMachine::Fail(const std::string& what) const {
  throw UserError(ExitStatus::kBadData,
                  fmt::format("{}: at byte {} {}", file_name_, opcode_position_, what));
}

Bytes PickleMachine::Take(std::uint64_t length) {
  const std::size_t left = file_.size() - position_;
  if (length > left) {
    Fail(fmt::format("the pickle wants {} more bytes, but the file ends after {}", length, left));
  }
  const Bytes taken{position_, static_cast<std::size_t>(length)};
  position_ += taken.length;
  return taken;
}

std::uint64_t PickleMachine::TakeUnsigned(int bytes) {
  const Bytes taken = Take(static_cast<std::uint64_t>(bytes));
  std::uint64_t number = 0;
  for (std::size_t i = taken.length; i-- > 0;) {
    number = number << 8 | std::to_integer<std::uint64_t>(file_[taken.offset + i]);
  }
  return number;
}

std::string_view PickleMachine::TakeText(std::uint64_t length) {
  if (length > kMaxString) {
    Fail(fmt::format("a string has {} bytes, more than {}", length, kMaxString));
  }
  const Bytes taken = Take(length);
  return {reinterpret_cast<const char*>(file_.data()) + taken.offset, taken.length};
}

std::string_view PickleMachine::TakeLine() {
  std::size_t length = 0;
  while (length <= kMaxString && position_ + length < file_.size() &&
         file_[position_ + length] != std::byte{'\n'}) {
    ++length;
  }
  const std::string_view line = TakeText(length);
  Take(1);  // the newline
  return line;
}

void PickleMachine::Push(Value value) {
  if (stack_.size() == kMaxStack) Fail(fmt::format("the stack grows past {} values", kMaxStack));
  stack_.push_back(value);
}

const Value& PickleMachine::Top() const {
  if (stack_.empty() || std::holds_alternative<Mark>(stack_.back())) {
    Fail("the opcode needs a value that the stack does not have");
  }
  return stack_.back();
}

Value PickleMachine::Pop() {
  Value value = Top();
  stack_.pop_back();
  return value;
}

template <class T>
T PickleMachine::PopAs(std::string_view what) {
  const Value value = Pop();
  const T* const wanted = std::get_if<T>(&value);
  if (wanted == nullptr) Fail(fmt::format("the opcode needs {}, but finds another kind", what));
  return *wanted;
}

std::size_t PickleMachine::TopMark() const {
  for (std::size_t i = stack_.size(); i-- > 0;) {
    if (std::holds_alternative<Mark>(stack_[i])) return i;
  }
  Fail("the opcode needs a mark, but the stack has none");
}

void PickleMachine::PushTuple(std::size_t begin) {
  const Tuple tuple{tuple_items_.size(), stack_.size() - begin};
  tuple_items_.insert(tuple_items_.end(), stack_.begin() + static_cast<std::ptrdiff_t>(begin),
                      stack_.end());
  stack_.resize(begin);
  Push(tuple);
}

void PickleMachine::Put(std::uint64_t index) {
  if (index >= kMaxMemo) Fail(fmt::format("the memo grows past {} values", kMaxMemo));
  const auto place = static_cast<std::size_t>(index);
  if (place >= memo_.size()) memo_.resize(place + 1);
  if (!memo_[place].has_value()) ++memo_entries_;
  memo_[place] = Top();
}

void PickleMachine::Get(std::uint64_t index) {
  if (index >= memo_.size() || !memo_[static_cast<std::size_t>(index)].has_value()) {
    Fail(fmt::format("the memo has no value {}", index));
  }
  Push(*memo_[static_cast<std::size_t>(index)]);
}

PickledWeight PickleMachine::Run() {
  if (file_.empty() || file_[0] != std::byte{static_cast<std::uint8_t>(Opcode::kProto)}) {
    Fail("the file does not start like a Python pickle of protocol 2 or later");
  }
  Take(1);
  const std::uint64_t protocol = TakeUnsigned(1);
  if (protocol < 2 || protocol > 5) {
    Fail(fmt::format("the file has pickle protocol {}, not 2 to 5", protocol));
  }
  for (int i = 0; i < kMaxOpcodes; ++i) {
    opcode_position_ = position_;
    const auto opcode = static_cast<Opcode>(TakeUnsigned(1));
    if (opcode == Opcode::kStop) return Finish();
    Step(opcode);
  }
  Fail(fmt::format("the pickle still goes on after {} opcodes", kMaxOpcodes));
}

void PickleMachine::Step(Opcode opcode) {
  switch (opcode) {
    case Opcode::kFrame:
      Take(8);  // its length only helps readers that buffer
      return;
    case Opcode::kMark:
      return Push(Mark{});
    case Opcode::kNone:
      return Push(None{});
    case Opcode::kNewTrue:
      return Push(true);
    case Opcode::kNewFalse:
      return Push(false);
    case Opcode::kBinInt1:
      return Push(static_cast<std::int64_t>(TakeUnsigned(1)));
    case Opcode::kBinInt2:
      return Push(static_cast<std::int64_t>(TakeUnsigned(2)));
    case Opcode::kBinInt:
      return Push(std::int64_t{static_cast<std::int32_t>(TakeUnsigned(4))});
    case Opcode::kLong1: {
      const int bytes = static_cast<int>(TakeUnsigned(1));
      if (bytes > 8) Fail(fmt::format("an integer has {} bytes, more than 8", bytes));
      const std::uint64_t number = TakeUnsigned(bytes);
      const int unused = bytes == 0 ? 0 : 64 - 8 * bytes;  // bits above the sign
      return Push(static_cast<std::int64_t>(number << unused) >> unused);
    }
    case Opcode::kShortBinUnicode:
      return Push(Text{TakeText(TakeUnsigned(1))});
    case Opcode::kBinUnicode:
      return Push(Text{TakeText(TakeUnsigned(4))});
    case Opcode::kShortBinBytes:
      return Push(Take(TakeUnsigned(1)));
    case Opcode::kBinBytes:
      return Push(Take(TakeUnsigned(4)));
    case Opcode::kBinBytes8:
      return Push(Take(TakeUnsigned(8)));
    case Opcode::kEmptyTuple:
      return PushTuple(stack_.size());
    case Opcode::kTuple1:
    case Opcode::kTuple2:
    case Opcode::kTuple3: {
      const std::size_t count = static_cast<std::size_t>(opcode) - 0x84;
      if (stack_.size() < count) Fail("a tuple needs more values than the stack has");
      for (std::size_t i = stack_.size() - count; i < stack_.size(); ++i) {
        if (std::holds_alternative<Mark>(stack_[i])) Fail("a tuple reaches across a mark");
      }
      return PushTuple(stack_.size() - count);
    }
    case Opcode::kTuple: {
      const std::size_t mark = TopMark();
      PushTuple(mark + 1);
      stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(mark));
      return;
    }
    case Opcode::kEmptyDict:
      dicts_.emplace_back();
      return Push(Reference<DictObject>{dicts_.size() - 1});
    case Opcode::kSetItem: {
      const Value value = Pop();
      const Value key = Pop();
      const auto dict = PopAs<Reference<DictObject>>("a dict");
      SetItem(dicts_[dict.index], key, value);
      return Push(dict);
    }
    case Opcode::kSetItems: {
      const std::size_t mark = TopMark();
      const std::vector<Value> items(stack_.begin() + static_cast<std::ptrdiff_t>(mark) + 1,
                                     stack_.end());
      stack_.resize(mark);
      if (items.size() % 2 != 0) Fail("a dict gets a key without a value");
      const auto dict = PopAs<Reference<DictObject>>("a dict");
      for (std::size_t i = 0; i < items.size(); i += 2) {
        SetItem(dicts_[dict.index], items[i], items[i + 1]);
      }
      return Push(dict);
    }
    case Opcode::kMemoize:
      return Put(memo_entries_);
    case Opcode::kBinPut:
      return Put(TakeUnsigned(1));
    case Opcode::kLongBinPut:
      return Put(TakeUnsigned(4));
    case Opcode::kBinGet:
      return Get(TakeUnsigned(1));
    case Opcode::kLongBinGet:
      return Get(TakeUnsigned(4));
    case Opcode::kGlobal: {
      const std::string_view module = TakeLine();
      return PushGlobal(module, TakeLine());
    }
    case Opcode::kStackGlobal: {
      const auto name = PopAs<Text>("a name");
      return PushGlobal(PopAs<Text>("a module's name").text, name.text);
    }
    case Opcode::kReduce:
      return Reduce();
    case Opcode::kNewObj:
      return NewObject();
    case Opcode::kBuild:
      return Build();
    case Opcode::kStop:   // Run() takes it
    case Opcode::kProto:  // only a file's first
      break;
  }
  const auto value = static_cast<std::uint8_t>(opcode);
  const std::string_view name = opcode == Opcode::kProto ? "PROTO" : RefusedOpcodeName(value);
  Fail(fmt::format("the pickle uses opcode 0x{:02x} ({}), which no weight needs", value, name));
}

void PickleMachine::PushGlobal(std::string_view module, std::string_view name) {
  for (const GlobalName& known : kGlobals) {
    if (known.module == module && known.name == name) return Push(known.global);
  }
  // The names are the file's: escaped, so that they cannot drive a terminal.
  const std::string full = fmt::format("{}.{}", module, name);
  Fail(fmt::format("the reader refuses to import {}, which no weight needs", Quoted(full)));
}

bool IsInteger(const Value& value, std::int64_t wanted) {
  const std::int64_t* const integer = std::get_if<std::int64_t>(&value);
  return integer != nullptr && *integer == wanted;
}

/// True of what Python counts as this truth value here: NumPy has written flags as integers too.
bool IsFlag(const Value& value, bool wanted) {
  const bool* const flag = std::get_if<bool>(&value);
  return flag != nullptr ? *flag == wanted : IsInteger(value, wanted ? 1 : 0);
}

bool IsGlobal(const Value& value, Global wanted) {
  const Global* const global = std::get_if<Global>(&value);
  return global != nullptr && *global == wanted;
}

void PickleMachine::Reduce() {
  const std::span<const Value> arguments = Items(PopAs<Tuple>("a tuple of arguments"));
  const auto callee = PopAs<Global>("something to call");
  if (callee == Global::kReconstruct) {  // _reconstruct(ndarray, (0,), b"b"): an array to BUILD
    const Tuple* const shape = arguments.size() == 3 ? std::get_if<Tuple>(&arguments[1]) : nullptr;
    const Bytes* const code = arguments.size() == 3 ? std::get_if<Bytes>(&arguments[2]) : nullptr;
    const bool good = shape != nullptr && code != nullptr &&
                      IsGlobal(arguments[0], Global::kNdarray) && shape->count == 1 &&
                      IsInteger(Items(*shape)[0], 0) && code->length == 1 &&
                      file_[code->offset] == std::byte{'b'};
    if (!good) Fail("numpy's _reconstruct has other arguments than (ndarray, (0,), b'b')");
    arrays_.emplace_back();
    return Push(Reference<ArrayObject>{arrays_.size() - 1});
  }
  if (callee == Global::kDtype) {  // dtype(code or type, align=False, copy=True)
    if (arguments.size() != 3 || !IsFlag(arguments[1], false) || !IsFlag(arguments[2], true)) {
      Fail("numpy.dtype has other arguments than (type, False, True)");
    }
    if (const Text* const code = std::get_if<Text>(&arguments[0])) {
      if (code->text == "f4") {
        dtypes_.push_back({.dtype = DType::kF32});
      } else if (code->text == "i1") {
        dtypes_.push_back({.dtype = DType::kI8});
      } else {
        Fail(fmt::format("an array has dtype {}, not one of \"f4\", \"i1\" and bfloat16",
                         Quoted(code->text)));
      }
    } else if (IsGlobal(arguments[0], Global::kBfloat16)) {
      dtypes_.push_back({.dtype = DType::kBf16});
    } else {
      Fail("an array's dtype is neither a code nor ml_dtypes.bfloat16");
    }
    return Push(Reference<DtypeObject>{dtypes_.size() - 1});
  }
  Fail("the pickle calls something else than numpy's _reconstruct and dtype");
}

void PickleMachine::NewObject() {
  const auto arguments = PopAs<Tuple>("a tuple of arguments");
  const auto type = PopAs<Global>("a class");
  if (type != Global::kQuantizedWeight || arguments.count != 0) {
    Fail("the pickle makes another object than QuantizedWeight8bit()");
  }
  quantized_.emplace_back();
  Push(Reference<QuantizedObject>{quantized_.size() - 1});
}

void PickleMachine::Build() {
  const Value state = Pop();
  const Value object = Top();
  if (const auto* const dtype = std::get_if<Reference<DtypeObject>>(&object)) {
    return BuildDtype(dtypes_[dtype->index], state);
  }
  if (const auto* const array = std::get_if<Reference<ArrayObject>>(&object)) {
    return BuildArray(arrays_[array->index], state);
  }
  if (const auto* const quantized = std::get_if<Reference<QuantizedObject>>(&object)) {
    return BuildQuantized(quantized_[quantized->index], state);
  }
  Fail("the pickle gives a state to something that has none");
}

void PickleMachine::BuildDtype(DtypeObject& dtype, const Value& state) {
  if (dtype.built) Fail("a dtype is built twice");
  // (3, byte order, subarray, names, fields, itemsize, alignment, flags)
  const Tuple* const tuple = std::get_if<Tuple>(&state);
  const std::span<const Value> items = tuple ? Items(*tuple) : std::span<const Value>();
  if (items.size() != 8 || !IsInteger(items[0], 3)) {
    Fail("a dtype's state is not version 3's tuple of 8");
  }
  const Text* const order = std::get_if<Text>(&items[1]);
  if (order == nullptr || order->text != (SizeOf(dtype.dtype) == 1 ? "|" : "<")) {
    Fail("a dtype's byte order is not little-endian");
  }
  for (const Value& item : items.subspan(2, 3)) {
    if (!std::holds_alternative<None>(item)) Fail("a dtype has fields or a subarray");
  }
  for (const Value& item : items.subspan(5, 3)) {
    if (!std::holds_alternative<std::int64_t>(item)) Fail("a dtype's state has a misfit");
  }
  dtype.built = true;
}

void PickleMachine::BuildArray(ArrayObject& array, const Value& state) {
  if (array.built) Fail("an array is built twice");
  // (1, shape, dtype, Fortran order, payload)
  const Tuple* const tuple = std::get_if<Tuple>(&state);
  const std::span<const Value> items = tuple ? Items(*tuple) : std::span<const Value>();
  if (items.size() != 5 || !IsInteger(items[0], 1)) {
    Fail("an array's state is not version 1's tuple of 5");
  }
  const Tuple* const shape = std::get_if<Tuple>(&items[1]);
  const auto* const dtype = std::get_if<Reference<DtypeObject>>(&items[2]);
  const Bytes* const payload = std::get_if<Bytes>(&items[4]);
  if (shape == nullptr) Fail("an array's shape is not a tuple");
  if (dtype == nullptr || !dtypes_[dtype->index].built) Fail("an array has no complete dtype");
  if (!IsFlag(items[3], false)) Fail("an array is in Fortran order, not in C order");
  if (payload == nullptr) Fail("an array's elements are not bytes");
  if (shape->count > kMaxStoredRank) {
    Fail(fmt::format("an array has {} dimensions, more than {}", shape->count, kMaxStoredRank));
  }
  StoredArray& result = array.array;
  for (const Value& item : Items(*shape)) {
    const std::int64_t* const size = std::get_if<std::int64_t>(&item);
    if (size == nullptr) Fail("an array's shape has something else than integers");
    result.shape.push_back(*size);
  }
  result.dtype = dtypes_[dtype->index].dtype;
  if (StoredLength(result.shape, result.dtype) != payload->length) {
    Fail(fmt::format("an array of {} {} has {} bytes", ShapeText(result.shape),
                     NameOf(result.dtype), payload->length));
  }
  result.offset = payload->offset;
  result.length = payload->length;
  array.built = true;
}

void PickleMachine::BuildQuantized(QuantizedObject& quantized, const Value& state) {
  if (quantized.built) Fail("a QuantizedWeight8bit is built twice");
  const auto* const dict = std::get_if<Reference<DictObject>>(&state);
  if (dict == nullptr) Fail("a QuantizedWeight8bit's state is not a dict");
  quantized.weight = dicts_[dict->index].weight;
  quantized.scales = dicts_[dict->index].scales;
  if (!quantized.weight || !quantized.scales) {
    Fail("a QuantizedWeight8bit lacks its weight or its scales");
  }
  quantized.built = true;
}

void PickleMachine::SetItem(DictObject& dict, const Value& key, const Value& value) {
  const Text* const name = std::get_if<Text>(&key);
  if (name == nullptr) Fail("a dict's key is not a string");
  if (name->text != "weight" && name->text != "scales") {
    Fail(fmt::format("a dict has key {}, not weight or scales", Quoted(name->text)));
  }
  const auto* const array = std::get_if<Reference<ArrayObject>>(&value);
  if (array == nullptr || !arrays_[array->index].built) {
    Fail(fmt::format("the value of {} is not a complete array", name->text));
  }
  std::optional<std::size_t>& place = name->text == "weight" ? dict.weight : dict.scales;
  if (place.has_value()) Fail(fmt::format("a dict has two values for {}", name->text));
  place = array->index;
}

PickledWeight PickleMachine::Finish() {
  const Value result = Pop();
  if (!stack_.empty()) Fail("the pickle stops with more than one value");
  if (position_ != file_.size()) {
    Fail(fmt::format("the pickle stops, but {} more bytes follow", file_.size() - position_));
  }
  if (const auto* const array = std::get_if<Reference<ArrayObject>>(&result)) {
    if (arrays_[array->index].built) return {arrays_[array->index].array, std::nullopt};
  }
  if (const auto* const quantized = std::get_if<Reference<QuantizedObject>>(&result)) {
    const QuantizedObject& object = quantized_[quantized->index];
    if (object.built) return {arrays_[*object.weight].array, arrays_[*object.scales].array};
  }
  Fail("the pickle stops without a complete array or QuantizedWeight8bit");
}

}  // namespace

PickledWeight ReadPickle(std::span<const std::byte> file, std::string_view file_name) {
  return PickleMachine(file, file_name).Run();
}

}  // namespace jubal

#include "runtime/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "kernels/error.h"

namespace jubal {
namespace {

constexpr std::size_t kLengthBytes = 8;  // of the header's length, in front of the header
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::size_t kMaxTensors = 200'000;
constexpr std::size_t kMaxName = 512;

constexpr std::pair<std::string_view, DType> kDtypes[] = {
    {"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBf16}, {"F64", DType::kF64},
    {"I8", DType::kI8},   {"U8", DType::kU8},   {"I32", DType::kI32},   {"I64", DType::kI64},
};

/// Takes the header from nlohmann's event parser, which nests no deeper than this state machine
/// lets it and builds no tree. Offsets are still relative to the data.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(std::string_view file_name) : file_name_(file_name) {}

  std::vector<SafetensorsEntry> TakeEntries() { return std::move(entries_); }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        return Enter(State::kHeader);
      case State::kHeaderValue:
        return Enter(State::kTensor);
      case State::kMetadataStart:
        return Enter(State::kMetadata);
      default:
        Fail("an object");
    }
  }
  bool end_object() override {
    switch (state_) {
      case State::kHeader:
        return Enter(State::kEnd);
      case State::kTensor:
        FinishTensor();
        return Enter(State::kHeader);
      default:
        return Enter(State::kHeader);  // of the metadata
    }
  }
  bool key(string_t& key) override {
    switch (state_) {
      case State::kHeader:
        if (key == "__metadata__") {
          if (std::exchange(has_metadata_, true)) throw Error("__metadata__ comes twice");
          return Enter(State::kMetadataStart);
        }
        StartTensor(key);
        return Enter(State::kHeaderValue);
      case State::kTensor:
        if (key == "dtype") return EnterOnce(State::kDtype, has_dtype_);
        if (key == "shape") return EnterOnce(State::kShapeStart, has_shape_);
        if (key == "data_offsets") return EnterOnce(State::kOffsetsStart, has_offsets_);
        throw TensorError(fmt::format("it has an unknown field {}", Quoted(key)));
      default:
        return true;  // of the metadata
    }
  }
  bool string(string_t& text) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kDtype) Fail("a string");
    const auto* const found =
        std::find_if(std::begin(kDtypes), std::end(kDtypes),
                     [&text](const auto& known) { return known.first == text; });
    if (found == std::end(kDtypes)) {
      throw TensorError(fmt::format(
          "its dtype is {}, not one of F32, F16, BF16, F64, I8, U8, I32 and I64", Quoted(text)));
    }
    entries_.back().array.dtype = found->second;
    return Enter(State::kTensor);
  }
  bool start_array(std::size_t) override {
    if (state_ == State::kShapeStart) return Enter(State::kShape);
    if (state_ == State::kOffsetsStart) return Enter(State::kOffsets);
    Fail("an array");
  }
  bool end_array() override { return Enter(State::kTensor); }
  bool number_unsigned(number_unsigned_t number) override {
    if (state_ == State::kShape) {
      std::vector<std::int64_t>& shape = entries_.back().array.shape;
      if (shape.size() == kMaxStoredRank) {
        throw TensorError(fmt::format("it has more than {} dimensions", kMaxStoredRank));
      }
      if (!std::in_range<std::int64_t>(number)) {
        throw TensorError(fmt::format("it has a dimension of {}", number));
      }
      shape.push_back(static_cast<std::int64_t>(number));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (offsets_count_ == 2) throw TensorError("it has more than two data_offsets");
      offsets_[offsets_count_++] = number;
      return true;
    }
    Fail("a number");
  }
  bool number_integer(number_integer_t number) override {
    Fail(fmt::format("the number {}", number));
  }
  bool number_float(number_float_t, const string_t& text) override {
    Fail(fmt::format("the number {}", Quoted(text)));
  }
  bool null() override { Fail("null"); }
  bool boolean(bool) override { Fail("a truth value"); }
  bool binary(binary_t&) override { Fail("binary data"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    throw Error(fmt::format("the header stops being JSON before byte {}", kLengthBytes + position));
  }

 private:
  enum class State {
    kStart,
    kHeader,         // between tensors
    kHeaderValue,    // after a tensor's name
    kTensor,         // between its fields
    kDtype,          // after "dtype"
    kShapeStart,     // after "shape"
    kShape,          // in its array
    kOffsetsStart,   // after "data_offsets"
    kOffsets,        // in its array
    kMetadataStart,  // after "__metadata__"
    kMetadata,       // in its object
    kEnd,
  };

  bool Enter(State state) {
    state_ = state;
    return true;
  }
  bool EnterOnce(State state, bool& entered) {
    if (std::exchange(entered, true)) throw TensorError("it has a field twice");
    return Enter(state);
  }

  UserError Error(const std::string& what) const {
    return UserError(ExitStatus::kBadData, fmt::format("{}: {}", file_name_, what));
  }
  UserError TensorError(const std::string& what) const {
    return Error(fmt::format("tensor {}: {}", Quoted(entries_.back().name), what));
  }
  [[noreturn]] void Fail(const std::string& found) const {
    const std::string what = fmt::format("the header has {} where none belongs", found);
    if (state_ == State::kStart || entries_.empty()) throw Error(what);
    throw Error(fmt::format("{} (at or after tensor {})", what, Quoted(entries_.back().name)));
  }

  void StartTensor(string_t& name) {
    if (name.size() > kMaxName) {
      throw Error(
          fmt::format("tensor {}: its name has more than {} bytes", Quoted(name), kMaxName));
    }
    if (entries_.size() == kMaxTensors) {
      throw Error(fmt::format("the file has more than {} tensors", kMaxTensors));
    }
    entries_.push_back({.name = std::move(name), .array = {}});
    has_dtype_ = has_shape_ = has_offsets_ = false;
    offsets_count_ = 0;
  }

  void FinishTensor() {
    StoredArray& array = entries_.back().array;
    if (!has_dtype_ || !has_shape_ || !has_offsets_ || offsets_count_ != 2) {
      throw TensorError("it lacks its dtype, its shape or two data_offsets");
    }
    const std::optional<std::size_t> length = StoredLength(array.shape, array.dtype);
    const auto [begin, end] = offsets_;
    if (end < begin || length != end - begin) {
      throw TensorError(fmt::format("{} {} does not fill bytes {} to {}", ShapeText(array.shape),
                                    NameOf(array.dtype), begin, end));
    }
    array.offset = begin;
    array.length = *length;
  }

  std::string_view file_name_;
  State state_ = State::kStart;
  bool has_metadata_ = false;
  std::vector<SafetensorsEntry> entries_;

  // Of the tensor being read, the last entry.
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  std::size_t offsets_count_ = 0;
  std::array<std::uint64_t, 2> offsets_{};
};

/// Requires that the entries, in order, tile [0, data_size).
void CheckCover(std::span<const SafetensorsEntry> entries, std::size_t data_size,
                std::string_view file_name) {
  std::size_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    const StoredArray& array = entry.array;
    if (array.offset != covered) {
      throw UserError(ExitStatus::kBadData,
                      fmt::format("{}: tensor {}: it starts at data byte {}, {} the end of the "
                                  "tensors before it, {}",
                                  file_name, Quoted(entry.name), array.offset,
                                  array.offset < covered ? "inside" : "past", covered));
    }
    if (array.length > data_size - covered) {
      throw UserError(
          ExitStatus::kBadData,
          fmt::format("{}: tensor {}: it ends at data byte {}, but the file has {}", file_name,
                      Quoted(entry.name), array.offset + array.length, data_size));
    }
    covered += array.length;
  }
  if (covered != data_size) {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{}: the tensors end at data byte {}, but the file has {}",
                                file_name, covered, data_size));
  }
}

void CheckNamesDiffer(std::span<const SafetensorsEntry> entries, std::string_view file_name) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{}: tensor {} comes twice", file_name, Quoted(*twice)));
  }
}

}  // namespace

std::vector<SafetensorsEntry> ReadSafetensorsHeader(std::span<const std::byte> file,
                                                    std::string_view file_name) {
  const auto fail = [file_name](const std::string& what) {
    throw UserError(ExitStatus::kBadData, fmt::format("{}: {}", file_name, what));
  };
  if (file.size() < kLengthBytes) {
    fail(fmt::format("a safetensors file has at least 8 bytes, not {}", file.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(file[i]);
  }
  const std::size_t left = file.size() - kLengthBytes;
  if (length > kMaxHeader) {
    fail(fmt::format("the header claims {} bytes, more than {}", length, kMaxHeader));
  }
  if (length > left) {
    fail(fmt::format("the header claims {} bytes, but the file ends after {}", length, left));
  }
  const auto header = file.subspan(kLengthBytes, static_cast<std::size_t>(length));
  if (header.empty() || header[0] != std::byte{'{'}) fail("the header does not start with {");

  HeaderHandler handler(file_name);
  const char* const begin = reinterpret_cast<const char*>(header.data());
  nlohmann::json::sax_parse(begin, begin + header.size(), &handler);
  std::vector<SafetensorsEntry> entries = handler.TakeEntries();
  CheckNamesDiffer(entries, file_name);
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.array.offset, a.array.length, a.name) <
           std::tie(b.array.offset, b.array.length, b.name);
  });
  CheckCover(entries, left - header.size(), file_name);
  for (SafetensorsEntry& entry : entries) entry.array.offset += kLengthBytes + header.size();
  return entries;
}

std::vector<StoredTensor> ReadSafetensors(const std::shared_ptr<const MappedFile>& file) {
  std::vector<SafetensorsEntry> entries =
      ReadSafetensorsHeader(file->bytes(), file->path().string());
  std::vector<StoredTensor> tensors;
  tensors.reserve(entries.size());
  for (SafetensorsEntry& entry : entries) {
    tensors.push_back({.name = std::move(entry.name),
                       .dtype = entry.array.dtype,
                       .shape = std::move(entry.array.shape),
                       .file = file,
                       .offset = entry.array.offset});
  }
  return tensors;
}

}  // namespace jubal

#include "runtime/checkpoint/pack_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/check.h"
#include "kernels/error.h"
#include "runtime/checkpoint/stored_tensor.h"

namespace jubal {
namespace {

constexpr std::string_view kMagic = "JUBALPAK";
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kStepBytes = 4;
constexpr std::size_t kHeaderBytes = 48;
constexpr std::uint64_t kMaxManifest = 64 << 20;
constexpr std::size_t kMaxWeights = 100'000;
constexpr std::size_t kMaxText = 64;  // of a name, a type or a checksum
constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 31;

constexpr std::array kTypes{WeightType::kF32, WeightType::kBf16, WeightType::kInt8,
                            WeightType::kInt4};

std::uint64_t Aligned(std::uint64_t offset, std::uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

/// The fields of a weight in the manifest, in its order.
enum Field : std::size_t {
  kName,
  kType,
  kK,
  kN,
  kExperts,
  kGroupRows,
  kDataOffset,
  kDataBytes,
  kDataChecksum,
  kScalesOffset,
  kScalesBytes,
  kScalesChecksum,
  kFields,
};
constexpr std::array<std::string_view, kFields> kFieldNames{
    "name",         "type",        "k",          "n",         "experts",
    "group_rows",   "data_offset", "data_bytes", "data_xxh3", "scales_offset",
    "scales_bytes", "scales_xxh3"};

constexpr bool IsText(std::size_t field) {
  return field == kName || field == kType || field == kDataChecksum || field == kScalesChecksum;
}

/// Takes the manifest from nlohmann's event parser, which nests no deeper than this state machine
/// lets it and builds no tree.
class ManifestHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  ManifestHandler(std::string_view file_name, std::uint64_t data_bytes)
      : file_name_(file_name), data_bytes_(data_bytes) {}

  std::vector<PackedWeight> TakeWeights() { return std::move(weights_); }

  bool start_array(std::size_t) override {
    if (state_ != State::kStart) Fail("a list");
    return Enter(State::kList);
  }
  bool end_array() override { return Enter(State::kEnd); }
  bool start_object(std::size_t) override {
    if (state_ != State::kList) Fail("an object");
    if (weights_.size() == kMaxWeights) {
      throw Error(fmt::format("the manifest has more than {} weights", kMaxWeights));
    }
    return Enter(State::kWeight);
  }
  bool end_object() override {
    FinishWeight();
    numbers_ = {};
    texts_ = {};
    seen_ = {};
    return Enter(State::kList);
  }
  bool key(string_t& key) override {
    const auto* const found = std::find(kFieldNames.begin(), kFieldNames.end(), key);
    field_ = static_cast<std::size_t>(found - kFieldNames.begin());
    if (field_ == kFields)
      throw WeightError(fmt::format("it has an unknown field {}", Quoted(key)));
    if (std::exchange(seen_[field_], true)) {
      throw WeightError(fmt::format("it has two fields {}", kFieldNames[field_]));
    }
    return Enter(State::kValue);
  }
  bool string(string_t& text) override {
    if (state_ != State::kValue || !IsText(field_)) Fail("a string");
    if (text.size() > kMaxText) {
      throw WeightError(fmt::format("its {} has {} bytes", kFieldNames[field_], text.size()));
    }
    texts_[field_] = std::move(text);
    return Enter(State::kWeight);
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (state_ != State::kValue || IsText(field_)) Fail("a number");
    numbers_[field_] = number;
    return Enter(State::kWeight);
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
    throw Error(fmt::format("the manifest stops being JSON at its byte {}", position));
  }

 private:
  enum class State {
    kStart,
    kList,    // between weights
    kWeight,  // between fields
    kValue,   // after a field's name
    kEnd,
  };

  bool Enter(State state) {
    state_ = state;
    return true;
  }

  UserError Error(const std::string& what) const {
    return UserError(ExitStatus::kBadData, fmt::format("{}: {}", file_name_, what));
  }
  UserError WeightError(const std::string& what) const {
    return Error(seen_[kName] && !texts_[kName].empty()
                     ? fmt::format("weight {}: {}", Quoted(texts_[kName]), what)
                     : fmt::format("weight number {}: {}", weights_.size(), what));
  }
  [[noreturn]] void Fail(const std::string& found) const {
    throw WeightError(fmt::format("the manifest has {} where none belongs", found));
  }

  std::int64_t Size(Field field, std::uint64_t least) const {
    if (numbers_[field] < least || numbers_[field] >= kMaxSize) {
      throw WeightError(fmt::format("its {} is {}", kFieldNames[field], numbers_[field]));
    }
    return static_cast<std::int64_t>(numbers_[field]);
  }

  PackSection Section(Field first, std::uint64_t alignment) {
    const std::string_view what = first == kDataOffset ? "data" : "scales";
    const std::string& checksum = texts_[first + 2];
    PackSection section{.offset = numbers_[first], .bytes = numbers_[first + 1], .checksum = 0};
    const char* const end = checksum.data() + checksum.size();
    const auto [rest, error] = std::from_chars(checksum.data(), end, section.checksum, 16);
    if (checksum.size() != 16 || error != std::errc() || rest != end) {
      throw WeightError(fmt::format("its {} have the checksum {}", what, Quoted(checksum)));
    }
    if (section.offset % alignment != 0 || section.offset < covered_ ||
        section.offset > data_bytes_ || section.bytes > data_bytes_ - section.offset) {
      throw WeightError(fmt::format(
          "its {} bytes of {} at offset {} are not aligned to {} between {}, the end of what is "
          "before them, and {}, the end of the file",
          section.bytes, what, section.offset, alignment, covered_, data_bytes_));
    }
    covered_ = section.offset + section.bytes;
    return section;
  }

  void FinishWeight() {
    const auto* const type = std::find_if(kTypes.begin(), kTypes.end(), [this](WeightType known) {
      return NameOf(known) == texts_[kType];
    });
    if (type == kTypes.end()) {
      throw WeightError(
          fmt::format("its type is {}, not f32, bf16, int8 or int4", Quoted(texts_[kType])));
    }
    const std::size_t fields = HasScales(*type) ? kFields : kScalesOffset;
    for (std::size_t field = 0; field < kFields; ++field) {
      if (seen_[field] != (field < fields)) {
        throw WeightError(fmt::format("it {} {}", seen_[field] ? "is no integer, but has" : "lacks",
                                      kFieldNames[field]));
      }
    }
    PackedWeight weight{.name = texts_[kName],
                        .type = *type,
                        .k = Size(kK, 1),
                        .n = Size(kN, 0),
                        .experts = Size(kExperts, 1),
                        .group_rows = Size(kGroupRows, 0),
                        .data = Section(kDataOffset, kPackDataAlignment),
                        .scales = {}};
    const std::int64_t most = *type == WeightType::kInt4   ? kMaxInt4GroupRows
                              : *type == WeightType::kInt8 ? static_cast<std::int64_t>(kMaxSize)
                                                           : 0;
    if (weight.group_rows > most || (most > 0 && weight.group_rows == 0)) {
      throw WeightError(
          fmt::format("it is {} with groups of {} rows", NameOf(*type), weight.group_rows));
    }
    if (HasScales(*type)) weight.scales = Section(kScalesOffset, kPackScalesAlignment);
    weights_.push_back(std::move(weight));
  }

  std::string_view file_name_;
  std::uint64_t data_bytes_;
  State state_ = State::kStart;
  std::vector<PackedWeight> weights_;
  std::uint64_t covered_ = 0;  // by the sections so far

  // Of the weight being read.
  std::size_t field_ = 0;
  std::array<bool, kFields> seen_{};
  std::array<std::uint64_t, kFields> numbers_{};
  std::array<std::string, kFields> texts_;
};

struct Header {
  std::uint32_t version = kVersion;
  std::uint32_t block_columns = kBlockColumns;
  std::uint32_t chunks = kChunks;
  std::uint32_t step_bytes = kStepBytes;
  std::uint64_t file_bytes = 0;
  std::uint64_t manifest_bytes = 0;
};
static_assert(kMagic.size() + sizeof(Header) + sizeof(std::uint64_t) == kHeaderBytes);

/// Of the header's first bytes, without the checksum itself, and of the manifest.
std::uint64_t HeaderChecksum(const std::byte* header, std::string_view manifest) {
  return XXH3_64bits_withSeed(manifest.data(), manifest.size(),
                              XXH3_64bits(header, kHeaderBytes - sizeof(std::uint64_t)));
}

/// Hashes sections, from the first to the last, in windows.
class Verification {
 public:
  explicit Verification(const Pack& pack) : pack_(pack) {
    for (const PackedWeight& weight : pack.weights) {
      sections_.push_back({&weight, &weight.data});
      if (weight.scales.bytes > 0) sections_.push_back({&weight, &weight.scales});
      total_ += static_cast<std::int64_t>(weight.data.bytes + weight.scales.bytes);
    }
    first_damaged_ = sections_.size();
  }

  /// Takes sections until none is left. `progress` may be empty.
  void Work(const std::function<void(std::int64_t, std::int64_t)>& progress) {
    for (std::size_t i = next_++; i < sections_.size(); i = next_++) {
      if (Matches(*sections_[i].section, progress)) continue;
      std::size_t first = first_damaged_;
      while (i < first && !first_damaged_.compare_exchange_weak(first, i)) {
      }
    }
  }

  std::int64_t total() const { return total_; }
  void ThrowIfDamaged() const {
    if (first_damaged_ == sections_.size()) return;
    const auto [weight, section] = sections_[first_damaged_];
    throw UserError(ExitStatus::kBadData,
                    fmt::format("{}: the {} of {} cannot be read or differ from their checksum: "
                                "the file is damaged, copy or pack it again",
                                pack_.file->path().string(),
                                section == &weight->data ? "data" : "scales", weight->name));
  }

 private:
  struct NamedSection {
    const PackedWeight* weight;
    const PackSection* section;
  };

  bool Matches(const PackSection& section,
               const std::function<void(std::int64_t, std::int64_t)>& progress) {
    constexpr std::uint64_t kWindow = 8 << 20;
    PackChecksum checksum;
    for (std::uint64_t begin = 0; begin < section.bytes; begin += kWindow) {
      const std::uint64_t bytes = std::min(kWindow, section.bytes - begin);
      if (!pack_.file->Populate(section.offset + begin, bytes)) return false;
      checksum.Add(pack_.bytes(section).subspan(begin, bytes));
      done_ += static_cast<std::int64_t>(bytes);
      if (progress && done_ < total_) progress(done_, total_);
    }
    return checksum.value() == section.checksum;
  }

  const Pack& pack_;
  std::vector<NamedSection> sections_;
  std::int64_t total_ = 0;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<std::size_t> first_damaged_ = 0;
  std::atomic<std::int64_t> done_ = 0;
};

}  // namespace

std::vector<PackedWeight> ReadPackHeader(std::span<const std::byte> file,
                                         std::string_view file_name) {
  const auto fail = [file_name](const std::string& what) {
    throw UserError(ExitStatus::kBadData, fmt::format("{}: {}", file_name, what));
  };
  constexpr const char* kAgain = "pack the model again with this jubal";
  if (file.size() < kHeaderBytes || std::memcmp(file.data(), kMagic.data(), kMagic.size()) != 0) {
    fail("it is no pack, or one that was cut off");
  }
  Header header;
  std::memcpy(&header, file.data() + kMagic.size(), sizeof header);
  if (header.version != kVersion) {
    fail(fmt::format("it has version {} of the format, but this jubal reads version {}: {}",
                     header.version, kVersion, kAgain));
  }
  if (header.block_columns != kBlockColumns || header.chunks != kChunks ||
      header.step_bytes != kStepBytes) {
    fail(
        fmt::format("its weights lie in blocks of {} columns, {} chunks and steps of {} bytes, "
                    "not in {}, {} and {}: {}",
                    header.block_columns, header.chunks, header.step_bytes, kBlockColumns, kChunks,
                    kStepBytes, kAgain));
  }
  if (header.file_bytes != file.size()) {
    fail(fmt::format("it has {} bytes, but was written with {}: copy or pack it again", file.size(),
                     header.file_bytes));
  }
  const std::uint64_t data_begin =
      header.manifest_bytes > kMaxManifest
          ? 0
          : Aligned(kHeaderBytes + header.manifest_bytes, kPackDataAlignment);
  if (data_begin == 0 || data_begin > file.size()) {
    fail(fmt::format("its manifest of {} bytes does not fit a file of {} bytes",
                     header.manifest_bytes, file.size()));
  }
  const std::string_view manifest(reinterpret_cast<const char*>(file.data()) + kHeaderBytes,
                                  header.manifest_bytes);
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, file.data() + kHeaderBytes - sizeof checksum, sizeof checksum);
  if (checksum != HeaderChecksum(file.data(), manifest)) {
    fail("its manifest differs from its checksum: the file is damaged, copy or pack it again");
  }
  std::vector<PackedWeight> weights =
      ParsePackManifest(manifest, file.size() - data_begin, file_name);
  for (PackedWeight& weight : weights) {
    weight.data.offset += data_begin;
    weight.scales.offset += data_begin;
  }
  return weights;
}

std::vector<PackedWeight> ParsePackManifest(std::string_view manifest, std::uint64_t data_bytes,
                                            std::string_view file_name) {
  ManifestHandler handler(file_name, data_bytes);
  nlohmann::json::sax_parse(manifest.begin(), manifest.end(), &handler);
  return handler.TakeWeights();
}

std::uint64_t PlacePackSections(std::span<PackedWeight> weights) {
  std::uint64_t end = 0;
  for (PackedWeight& weight : weights) {
    weight.data.offset = Aligned(end, kPackDataAlignment);
    end = weight.data.offset + weight.data.bytes;
    if (!HasScales(weight.type)) continue;
    weight.scales.offset = Aligned(end, kPackScalesAlignment);
    end = weight.scales.offset + weight.scales.bytes;
  }
  return end;
}

std::string PackHeader(std::span<const PackedWeight> weights, std::uint64_t data_bytes) {
  nlohmann::ordered_json manifest = nlohmann::ordered_json::array();
  for (const PackedWeight& weight : weights) {
    nlohmann::ordered_json fields;
    fields[kFieldNames[kName]] = weight.name;
    fields[kFieldNames[kType]] = NameOf(weight.type);
    fields[kFieldNames[kK]] = weight.k;
    fields[kFieldNames[kN]] = weight.n;
    fields[kFieldNames[kExperts]] = weight.experts;
    fields[kFieldNames[kGroupRows]] = weight.group_rows;
    const auto add = [&fields](std::size_t first, const PackSection& section) {
      fields[kFieldNames[first]] = section.offset;
      fields[kFieldNames[first + 1]] = section.bytes;
      fields[kFieldNames[first + 2]] = fmt::format("{:016x}", section.checksum);
    };
    add(kDataOffset, weight.data);
    if (HasScales(weight.type)) add(kScalesOffset, weight.scales);
    manifest.push_back(std::move(fields));
  }
  const std::string text = manifest.dump();
  const std::uint64_t data_begin = Aligned(kHeaderBytes + text.size(), kPackDataAlignment);
  const Header header{.file_bytes = data_begin + data_bytes, .manifest_bytes = text.size()};
  std::string front(data_begin, '\0');
  std::memcpy(front.data(), kMagic.data(), kMagic.size());
  std::memcpy(front.data() + kMagic.size(), &header, sizeof header);
  const std::uint64_t checksum =
      HeaderChecksum(reinterpret_cast<const std::byte*>(front.data()), text);
  std::memcpy(front.data() + kHeaderBytes - sizeof checksum, &checksum, sizeof checksum);
  std::memcpy(front.data() + kHeaderBytes, text.data(), text.size());
  return front;
}

PackChecksum::PackChecksum() : state_(XXH3_createState()) {
  CHECK(state_ != nullptr);
  CHECK_EQ(XXH3_64bits_reset(state_), XXH_OK);
}

PackChecksum::~PackChecksum() { XXH3_freeState(state_); }

void PackChecksum::Add(std::span<const std::byte> bytes) {
  CHECK_EQ(XXH3_64bits_update(state_, bytes.data(), bytes.size()), XXH_OK);
}

std::uint64_t PackChecksum::value() const { return XXH3_64bits_digest(state_); }

Pack Pack::Open(const std::filesystem::path& path) {
  Pack pack{.file = std::make_shared<const MappedFile>(path), .weights = {}};
  pack.file->PreferHugePages();
  pack.weights = ReadPackHeader(pack.file->bytes(), path.string());
  return pack;
}

void VerifyPack(const Pack& pack, int threads,
                const std::function<void(std::int64_t done, std::int64_t total)>& progress) {
  Verification verification(pack);
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) {
      others.emplace_back([&verification] { verification.Work({}); });
    }
    verification.Work(progress);
  }
  verification.ThrowIfDamaged();
  progress(verification.total(), verification.total());
}

}  // namespace jubal

#include "runtime/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/check.h"
#include "kernels/error.h"

namespace jubal {
namespace {

[[noreturn]] void FailToOpen(const std::filesystem::path& path, const std::string& why) {
  throw UserError(ExitStatus::kNoInput, fmt::format("{}: cannot be read: {}", path.string(), why));
}

std::size_t PageBytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

/// Closes the descriptor on every way out of the constructor.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // O_NONBLOCK: opening a FIFO that nobody writes would otherwise wait for ever.
  const Descriptor descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (descriptor.number() < 0) FailToOpen(path, std::strerror(errno));
  struct stat status {};
  if (fstat(descriptor.number(), &status) != 0) FailToOpen(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) FailToOpen(path, "not a regular file");
  if (status.st_size == 0) return;  // mmap refuses to map nothing
  const auto size = static_cast<std::size_t>(status.st_size);
  void* const data = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor.number(), 0);
  if (data == MAP_FAILED) FailToOpen(path, std::strerror(errno));
  data_ = static_cast<std::byte*>(data);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) CHECK_EQ(munmap(data_, size_), 0);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::WillNeed(std::size_t offset, std::size_t length) const {
  Advise(offset, length, MADV_WILLNEED);
}

void MappedFile::DoneWith(std::size_t offset, std::size_t length) const {
  Advise(offset, length, MADV_COLD);  // first: it only sees pages that are still mapped
  Advise(offset, length, MADV_DONTNEED);
}

void MappedFile::PreferHugePages() const { Advise(0, size_, MADV_HUGEPAGE); }

bool MappedFile::Populate(std::size_t offset, std::size_t length) const {
  const int error = Advise(offset, length, MADV_POPULATE_READ);
  if (error != EINVAL) return error == 0;
  // Linux before 5.14.
  WillNeed(offset, length);
  const volatile std::byte* const bytes = data_ + offset;
  const std::size_t page = PageBytes();
  for (std::size_t i = 0; i < length; i += page) static_cast<void>(bytes[i]);
  return true;
}

// A kernel may not know the advice.
int MappedFile::Advise(std::size_t offset, std::size_t length, int advice) const {
  CHECK(offset <= size_ && length <= size_ - offset);
  if (length == 0) return 0;
  const std::size_t begin = offset / PageBytes() * PageBytes();
  return madvise(data_ + begin, offset + length - begin, advice) == 0 ? 0 : errno;
}

}  // namespace jubal

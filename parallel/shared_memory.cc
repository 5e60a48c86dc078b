#include "parallel/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include <fmt/format.h>

#include "parallel/gather_values.h"

namespace jubal {
namespace {

/// What went wrong on one rank, in a form that it can send to the others.
struct Problem {
  enum Step : std::int32_t { kNone, kCreate, kResize, kMap, kPopulate, kOpen, kRecognize };
  Step step = kNone;
  std::int32_t error = 0;  // errno, if that tells more

  explicit operator bool() const { return step != kNone; }
  std::string ToString() const {
    constexpr const char* kSteps[] = {"",
                                      "memfd_create",
                                      "ftruncate",
                                      "mmap",
                                      "madvise",
                                      "opening another rank's memory in /proc",
                                      "another rank's memory is not in this /proc"};
    if (error == 0) return kSteps[step];
    return fmt::format("{}: {}", kSteps[step], std::generic_category().message(error));
  }
};

/// What a rank tells of its memory.
struct Offer {
  Problem problem;
  std::int32_t process = 0;
  std::int32_t file = -1;
  std::uint64_t device = 0;  // with `inode`: which file it is, on all of the host
  std::uint64_t inode = 0;
  std::int64_t bytes = 0;
  const std::shared_ptr<std::byte>* memory = nullptr;  // for ranks that are threads of one process
};

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

Problem Failed(Problem::Step step) { return {step, errno}; }

Problem Identify(const File& file, Offer& offer) {
  struct stat status {};
  if (fstat(file.descriptor(), &status) != 0) return Failed(Problem::kRecognize);
  offer.device = status.st_dev;
  offer.inode = status.st_ino;
  return {};
}

Problem Map(const File& file, std::int64_t bytes, int protection,
            std::shared_ptr<std::byte>& memory) {
  const auto length = static_cast<std::size_t>(bytes);
  void* const address = mmap(nullptr, length, protection, MAP_SHARED, file.descriptor(), 0);
  if (address == MAP_FAILED) return Failed(Problem::kMap);
  memory = std::shared_ptr<std::byte>(static_cast<std::byte*>(address),
                                      [length](std::byte* place) { munmap(place, length); });
  return {};
}

/// Makes this rank's memory and its offer to the others.
Problem Create(const File& file, std::int64_t bytes, Offer& offer,
               std::shared_ptr<std::byte>& memory) {
  if (file.descriptor() < 0) return Failed(Problem::kCreate);
  if (ftruncate(file.descriptor(), bytes) != 0) return Failed(Problem::kResize);
  offer.process = getpid();
  offer.file = file.descriptor();
  offer.bytes = bytes;
  offer.memory = &memory;
  if (const Problem problem = Identify(file, offer)) return problem;
  if (const Problem problem = Map(file, bytes, PROT_READ | PROT_WRITE, memory)) return problem;
  // A page that could not be had later would end the process without a word. Pages should also be
  // near the rank that writes to them. Linux before 5.14 does not know the call.
  if (madvise(memory.get(), static_cast<std::size_t>(bytes), MADV_POPULATE_WRITE) != 0 &&
      errno != EINVAL) {
    return Failed(Problem::kPopulate);
  }
  return {};
}

Problem Attach(const Offer& offer, std::shared_ptr<const std::byte>& memory) {
  const File file(
      open(fmt::format("/proc/{}/fd/{}", offer.process, offer.file).c_str(), O_RDONLY | O_CLOEXEC));
  if (file.descriptor() < 0) return Failed(Problem::kOpen);
  Offer found;
  if (const Problem problem = Identify(file, found)) return problem;
  // To a rank in another container the process may be a different one.
  if (found.device != offer.device || found.inode != offer.inode) return {Problem::kRecognize, 0};
  if (offer.process == getpid()) {
    memory = *offer.memory;
    return {};
  }
  std::shared_ptr<std::byte> mapped;
  const Problem problem = Map(file, offer.bytes, PROT_READ, mapped);
  memory = mapped;
  return problem;
}

std::string FirstFailure(const std::vector<Offer>& offers) {
  const auto failed = std::find_if(offers.begin(), offers.end(),
                                   [](const Offer& offer) { return bool{offer.problem}; });
  if (failed == offers.end()) return "";
  return fmt::format("rank {} of {}: {}", failed - offers.begin(), offers.size(),
                     failed->problem.ToString());
}

}  // namespace

SharedMemory ShareMemory(Communicator& group, std::int64_t bytes) {
  const File file(memfd_create("jubal", MFD_CLOEXEC));
  SharedMemory shared;
  Offer offer;
  offer.problem = Create(file, std::max<std::int64_t>(bytes, 1), offer, shared.mine);
  const std::vector<Offer> offers = GatherValues(group, offer);
  if (std::string failure = FirstFailure(offers); !failure.empty()) return {.failure = failure};

  shared.of_rank.resize(offers.size());
  for (std::size_t r = 0; r < offers.size() && !offer.problem; ++r) {
    offer.problem = Attach(offers[r], shared.of_rank[r]);
  }
  // Until all have come here, every rank's file stays open.
  const std::string failure = FirstFailure(GatherValues(group, offer));
  if (!failure.empty()) return {.failure = failure};
  return shared;
}

}  // namespace jubal

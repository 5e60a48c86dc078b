#include "launch/progress_line.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "launch/memory_size.h"

namespace jubal {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

std::string TimeText(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  return fmt::format("{} min {} s", whole / 60, whole % 60);
}

std::string RateText(std::int64_t bytes, double seconds) {
  const double rate = seconds > 0 ? static_cast<double>(bytes) / seconds : 0;
  return fmt::format("{}/s", MemorySizeText(static_cast<std::int64_t>(rate)));
}

std::string ElapsedText(double seconds) {
  return seconds < 1 ? fmt::format("{:.0f} ms", seconds * 1e3) : fmt::format("{:.1f} s", seconds);
}

class Progress {
 public:
  Progress(std::string_view doing, std::string_view done) : doing_(doing), done_(done) {}

  void operator()(std::int64_t done, std::int64_t total) {
    (*this)({.done = done, .total = total});
  }
  void operator()(const LoadState& state) {
    const auto [done, total, from_disk] = state;
    const Clock::time_point now = Clock::now();
    const bool finished = done >= total;
    if (ended_ || (!finished && now - last_ < interval_)) return;
    last_ = now;
    ended_ = finished;
    const double elapsed = Seconds(now - begin_).count();
    std::string line;
    if (finished && from_disk) {
      line = fmt::format("mapped {} in {}, ", MemorySizeText(total), ElapsedText(elapsed));
      line += *from_disk == 0 ? "all in page cache"
                              : fmt::format("{} of it from disk", MemorySizeText(*from_disk));
      if (*from_disk > total / 2) line += fmt::format(" ({})", RateText(*from_disk, elapsed));
    } else if (finished) {
      line = fmt::format("{} {} in {} ({})", done_, MemorySizeText(total), ElapsedText(elapsed),
                         RateText(total, elapsed));
    } else {
      line = fmt::format("{}: {} of {} ({:.0f} %)", doing_, MemorySizeText(done),
                         MemorySizeText(total),
                         100 * static_cast<double>(done) / static_cast<double>(total));
      if (done > 0 && elapsed > 0) {
        const double left = elapsed * static_cast<double>(total - done) / static_cast<double>(done);
        line += fmt::format(", {}, {} left", RateText(done, elapsed), TimeText(left));
      }
    }
    if (terminal_) {
      fmt::print(stderr, "\r\x1b[K{}{}", line, finished ? "\n" : "");
    } else {
      fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
  }

 private:
  const std::string doing_;
  const std::string done_;
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const Clock::duration interval_ =
      terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(5000);
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = begin_;
  bool ended_ = false;
};

class TestProgress {
 public:
  explicit TestProgress(std::string test) : test_(std::move(test)) {}

  void operator()(std::int64_t done, std::int64_t total) {
    const Clock::time_point now = Clock::now();
    if (!terminal_ || (done < total && now - last_ < std::chrono::milliseconds(200))) return;
    last_ = now;
    const double share = static_cast<double>(done) / static_cast<double>(total);
    const double left = Seconds(now - begin_).count() * (1 - share) / share;
    fmt::print(stderr, "\r\x1b[K");
    if (done < total)
      fmt::print(stderr, "{}: {:.0f} %, {} left", test_, 100 * share, TimeText(left));
    std::fflush(stderr);
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const std::string test_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = begin_;
};

}  // namespace

StepProgress TestProgressLine(const std::string& test) { return TestProgress(test); }

LoadProgress ProgressLine(bool leader) {
  if (!leader) return [](const LoadState&) {};
  return Progress("loading", "loaded");
}

std::function<void(std::int64_t, std::int64_t)> ProgressLine(std::string_view doing,
                                                             std::string_view done) {
  return Progress(doing, done);
}

}  // namespace jubal

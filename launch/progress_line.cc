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

class Progress {
 public:
  void operator()(std::int64_t done, std::int64_t total) {
    const Clock::time_point now = Clock::now();
    const bool finished = done >= total;
    if (ended_ || (!finished && now - last_ < interval_)) return;
    last_ = now;
    ended_ = finished;
    const double elapsed = Seconds(now - begin_).count();
    const double rate = elapsed > 0 ? static_cast<double>(done) / elapsed : 0;
    std::string line;
    if (finished) {
      line = fmt::format("loaded {} in {:.1f} s ({}/s)", MemorySizeText(total), elapsed,
                         MemorySizeText(static_cast<std::int64_t>(rate)));
    } else {
      line =
          fmt::format("loading: {} of {} ({:.0f} %)", MemorySizeText(done), MemorySizeText(total),
                      100 * static_cast<double>(done) / static_cast<double>(total));
      if (rate > 0) {
        line += fmt::format(", {}/s, {} left", MemorySizeText(static_cast<std::int64_t>(rate)),
                            TimeText(static_cast<double>(total - done) / rate));
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
  if (!leader) return [](std::int64_t, std::int64_t) {};
  return Progress();
}

}  // namespace jubal

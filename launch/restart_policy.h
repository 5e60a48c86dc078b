#ifndef JUBAL_LAUNCH_RESTART_POLICY_H_
#define JUBAL_LAUNCH_RESTART_POLICY_H_

#include <chrono>
#include <deque>
#include <optional>

namespace jubal {

/// Decides whether a failed job is started again. A job that fails again and again is not.
class RestartPolicy {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::size_t kMostFailures = 5;
  static constexpr std::chrono::minutes kWindow{5};

  /// How long to wait after a failure at `now`; nothing when this was the fifth in five minutes.
  /// The first failure costs no wait, each further one in the window twice that of the one before.
  std::optional<std::chrono::seconds> AfterFailure(Clock::time_point now);

 private:
  std::deque<Clock::time_point> failures_;  // in the window
};

}  // namespace jubal

#endif  // JUBAL_LAUNCH_RESTART_POLICY_H_

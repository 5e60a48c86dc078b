#include "launch/restart_policy.h"

namespace jubal {

std::optional<std::chrono::seconds> RestartPolicy::AfterFailure(Clock::time_point now) {
  while (!failures_.empty() && now - failures_.front() > kWindow) failures_.pop_front();
  failures_.push_back(now);
  if (failures_.size() >= kMostFailures) return std::nullopt;
  return std::chrono::seconds((1 << (failures_.size() - 1)) / 2);
}

}  // namespace jubal

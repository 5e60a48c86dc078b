#ifndef JUBAL_TESTS_RUNTIME_CHECKPOINT_EXPECT_USER_ERROR_H_
#define JUBAL_TESTS_RUNTIME_CHECKPOINT_EXPECT_USER_ERROR_H_

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/error.h"

namespace jubal {

/// Expects `action` to throw a UserError of this status whose message holds every part.
inline void ExpectUserError(ExitStatus status, const std::function<void()>& action,
                            const std::vector<std::string>& parts) {
  try {
    action();
  } catch (const UserError& error) {
    EXPECT_EQ(static_cast<int>(error.status()), static_cast<int>(status)) << error.what();
    const std::string message = error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << "\"" << message << "\" lacks \"" << part << "\"";
    }
    return;
  }
  ADD_FAILURE() << "nothing was thrown";
}

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_CHECKPOINT_EXPECT_USER_ERROR_H_

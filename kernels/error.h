#ifndef JUBAL_KERNELS_ERROR_H_
#define JUBAL_KERNELS_ERROR_H_

#include <stdexcept>
#include <string>

namespace jubal {

/// What a user can mend, as sysexits.h numbers it.
enum class ExitStatus {
  kUsage = 64,        // a flag or a request is wrong
  kBadData = 65,      // a file's content is wrong
  kNoInput = 66,      // a file is missing or unreadable
  kUnavailable = 69,  // a port is taken, a server does not answer
  kIoError = 74,      // reading or writing failed half-way
  kConfig = 78,       // the model does not fit the machine as asked
};

/// A fault that the user can mend: a flag, a file, a plan that does not fit. The message is one
/// sentence that names the culprit and says what to do. Thrown anywhere, caught once, in `launch`.
class UserError : public std::runtime_error {
 public:
  UserError(ExitStatus status, const std::string& message)
      : std::runtime_error(message), status_(status) {}

  ExitStatus status() const { return status_; }

 private:
  ExitStatus status_;
};

}  // namespace jubal

#endif  // JUBAL_KERNELS_ERROR_H_

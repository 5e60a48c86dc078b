#ifndef JUBAL_KERNELS_CHECK_H_
#define JUBAL_KERNELS_CHECK_H_

#include <sstream>
#include <string>

namespace jubal {

/// Prints the place and the message to standard error, then aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const std::string& message);

namespace check_internal {

template <class A, class B>
[[noreturn]] void FailedComparison(const char* file, int line, const char* expression, const A& a,
                                   const B& b) {
  std::ostringstream text;
  text << expression << " (" << a << " against " << b << ")";
  CheckFailed(file, line, text.str());
}

}  // namespace check_internal
}  // namespace jubal

/// Our own bugs end the process: CHECK states what must hold whatever the user did.
#define CHECK(condition) \
  ((condition) ? (void)0 : ::jubal::CheckFailed(__FILE__, __LINE__, #condition))

#define JUBAL_CHECK_COMPARISON(a, op, b)                                                        \
  do {                                                                                          \
    const auto check_a = (a);                                                                   \
    const auto check_b = (b);                                                                   \
    if (!(check_a op check_b)) {                                                                \
      ::jubal::check_internal::FailedComparison(__FILE__, __LINE__, #a " " #op " " #b, check_a, \
                                                check_b);                                       \
    }                                                                                           \
  } while (false)

#define CHECK_EQ(a, b) JUBAL_CHECK_COMPARISON(a, ==, b)
#define CHECK_LE(a, b) JUBAL_CHECK_COMPARISON(a, <=, b)
#define CHECK_LT(a, b) JUBAL_CHECK_COMPARISON(a, <, b)
#define CHECK_GE(a, b) JUBAL_CHECK_COMPARISON(a, >=, b)

#endif  // JUBAL_KERNELS_CHECK_H_

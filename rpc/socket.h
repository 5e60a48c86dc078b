#ifndef JUBAL_RPC_SOCKET_H_
#define JUBAL_RPC_SOCKET_H_

#include <chrono>
#include <string>
#include <utility>

namespace jubal {

/// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd();

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// Stream sockets by address: a path (it has a '/') on this machine, or HOST:PORT. All descriptors
/// are closed on exec.

bool IsSocketPath(const std::string& address);

/// Listens; the socket does not block. A path is for this user only; what a dead process left there
/// is removed. Throws UserError(kUnavailable) naming the address if it is taken or unusable, also
/// by another process of this user.
UniqueFd ListenOn(const std::string& address);

/// `address` with the port that `listener` really has.
std::string ListeningAddress(const UniqueFd& listener, const std::string& address);

/// Has the system send what is written at once, rather than wait for more; only TCP waits.
void SendAtOnce(const UniqueFd& fd);

/// Connects, once for each address that a host name has, waiting at most `timeout` for each; the
/// socket blocks. Returns nothing, with errno set, if nobody answers; throws
/// UserError(kUnavailable) if the address is malformed or its host unknown.
UniqueFd ConnectTo(const std::string& address, std::chrono::milliseconds timeout);

}  // namespace jubal

#endif  // JUBAL_RPC_SOCKET_H_

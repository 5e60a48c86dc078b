#include "rpc/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "kernels/error.h"

namespace jubal {
namespace {

constexpr int kBacklog = 1024;

UserError Unavailable(const std::string& address, const std::string& why) {
  return UserError(ExitStatus::kUnavailable, fmt::format("{}: {}", address, why));
}

sockaddr_un PathAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) throw Unavailable(path, "the path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

AddressList Resolve(const std::string& address, int flags) {
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 == address.size()) {
    throw Unavailable(address, "an address is HOST:PORT or a path with a '/'");
  }
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) throw Unavailable(address, gai_strerror(error));
  return AddressList(found, &freeaddrinfo);
}

UniqueFd NewSocket(int family) {
  return UniqueFd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Connects a socket that does not block.
bool Connect(const UniqueFd& fd, const sockaddr* address, socklen_t size,
             std::chrono::milliseconds timeout) {
  if (connect(fd.get(), address, size) == 0) return true;
  if (errno != EINPROGRESS) return false;
  pollfd wait{.fd = fd.get(), .events = POLLOUT, .revents = 0};
  const int ready = poll(&wait, 1, static_cast<int>(timeout.count()));
  if (ready == 0) errno = ETIMEDOUT;
  if (ready <= 0) return false;
  int error = 0;
  socklen_t error_size = sizeof(error);
  getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &error_size);
  errno = error;
  return error == 0;
}

bool SomeoneListensAt(const sockaddr_un& address) {
  const UniqueFd fd = NewSocket(AF_UNIX);
  return Connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address),
                 std::chrono::milliseconds{100}) ||
         errno == EAGAIN;  // its backlog is full
}

UniqueFd ListenOnPath(const std::string& path) {
  const sockaddr_un address = PathAddress(path);
  struct stat status;
  if (lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode) && !SomeoneListensAt(address)) {
    unlink(path.c_str());
  }
  UniqueFd fd = NewSocket(AF_UNIX);
  // The mode of the descriptor becomes that of the file: nobody else can connect at any time.
  if (!fd || fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0 ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(fd.get(), kBacklog) != 0) {
    throw Unavailable(path, std::strerror(errno));
  }
  return fd;
}

}  // namespace

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

bool IsSocketPath(const std::string& address) { return address.find('/') != std::string::npos; }

UniqueFd ListenOn(const std::string& address) {
  if (IsSocketPath(address)) return ListenOnPath(address);
  int error = EADDRNOTAVAIL;
  const AddressList list = Resolve(address, AI_PASSIVE);
  for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
    UniqueFd fd = NewSocket(info->ai_family);
    const int on = 1;
    // Not SO_REUSEPORT: two servers would share the port, and clients meet either.
    if (fd && setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        bind(fd.get(), info->ai_addr, info->ai_addrlen) == 0 && listen(fd.get(), kBacklog) == 0) {
      return fd;
    }
    error = errno;
  }
  throw Unavailable(address, std::strerror(error));
}

std::string ListeningAddress(const UniqueFd& listener, const std::string& address) {
  if (IsSocketPath(address)) return address;
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  const std::uint16_t port = bound.ss_family == AF_INET6
                                 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                 : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port;
  return fmt::format("{}:{}", address.substr(0, address.rfind(':')), ntohs(port));
}

void SendAtOnce(const UniqueFd& fd) {
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // no TCP: it has no such option
}

UniqueFd ConnectTo(const std::string& address, std::chrono::milliseconds timeout) {
  UniqueFd fd;
  if (IsSocketPath(address)) {
    const sockaddr_un path = PathAddress(address);
    fd = NewSocket(AF_UNIX);
    if (!fd || !Connect(fd, reinterpret_cast<const sockaddr*>(&path), sizeof(path), timeout)) {
      return {};
    }
  } else {
    const AddressList list = Resolve(address, 0);
    for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
      fd = NewSocket(info->ai_family);
      if (fd && Connect(fd, info->ai_addr, info->ai_addrlen, timeout)) break;
      const int error = errno;
      fd = UniqueFd();
      errno = error;
    }
    if (!fd) return {};
    SendAtOnce(fd);
  }
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK);
  return fd;
}

}  // namespace jubal

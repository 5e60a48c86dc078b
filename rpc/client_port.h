#ifndef JUBAL_RPC_CLIENT_PORT_H_
#define JUBAL_RPC_CLIENT_PORT_H_

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <cstdint>
#include <memory>
#include <string>

#include "rpc/generation_service.h"
#include "rpc/socket.h"

namespace jubal {

struct ClientPortOptions {
  std::string listen;
  std::int64_t max_message_bytes = 0;
  std::int64_t max_connection_streams = 0;
};

/// The gRPC server on the clients' port: a service, health and reflection.
///
/// Connections are accepted here and handed to gRPC: its own accept loop (of 1.51) stops for ever
/// once the process runs out of descriptors. One connection is refused instead when three quarters
/// of them are in use.
class ClientPort {
 public:
  /// Listens, but accepts nothing yet. `service` must outlive this. Throws UserError(kUnavailable)
  /// naming the address.
  ClientPort(const ClientPortOptions& options, GenerationService* service);

  /// Cancels all calls and waits for them to end.
  ~ClientPort();

  const std::string& address() const { return address_; }

  /// Readable when a connection waits for AcceptConnections.
  int fd() const { return listener_.get(); }

  /// Takes the connections that wait; does not block.
  void AcceptConnections();

  /// What health checks say. At first, not serving.
  void SetServing(bool serving);

  /// Takes no more connections and calls. Lets the calls under way end, for up to `seconds`, then
  /// cancels them.
  void Shutdown(int seconds);

 private:
  const UniqueFd listener_;
  const std::string address_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace jubal

#endif  // JUBAL_RPC_CLIENT_PORT_H_

#include "rpc/client_port.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/support/server_interceptor.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grpc/health/v1/health.pb.h"

namespace jubal {
namespace {

constexpr char kServiceName[] = "jubal.v1.GenerationService";

// gRPC's memory for connections and messages; new ones wait beyond it.
constexpr std::size_t kMaxBufferBytes = std::size_t{1} << 30;

void UsePlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    // gRPC speaks these messages without their descriptors: linked in, reflection has them too.
    google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

/// gRPC ends a call whose request it cannot parse with a bare UNIMPLEMENTED, before the service
/// hears of it. The client is told what is wrong instead.
class MalformedRequestInterceptor final : public grpc::experimental::Interceptor {
 public:
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED &&
          status.error_message().empty()) {
        methods->ModifySendStatus(grpc::Status(
            grpc::StatusCode::INVALID_ARGUMENT,
            "the request cannot be parsed: it is damaged, or a text in it is not UTF-8."));
      }
    }
    methods->Proceed();
  }
};

class MalformedRequestInterceptorFactory final
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    std::string name = info->method();  // "/package.Service/Method", known or not
    std::replace(name.begin(), name.end(), '/', '.');
    const auto* const pool = google::protobuf::DescriptorPool::generated_pool();
    const bool known = pool->FindMethodByName(name.substr(1)) != nullptr;
    return known ? new MalformedRequestInterceptor : nullptr;
  }
};

std::unique_ptr<grpc::Server> StartServer(
    const ClientPortOptions& options, GenerationService* service,
    std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor>* acceptor) {
  UsePlugins();
  grpc::ServerBuilder builder;
  *acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  builder.RegisterService(service);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<MalformedRequestInterceptorFactory>());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetResourceQuota(grpc::ResourceQuota("clients").Resize(kMaxBufferBytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(options.max_connection_streams));
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 3000);
  // Clients may ping as they like during a long silence: the default calls that an attack.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  // A client that is gone without a word is noticed, and its memory freed.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) throw std::runtime_error("the gRPC server does not start");
  return server;
}

bool DescriptorsRunShort(int newest) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  // The system gives the lowest free number: all below are in use.
  return static_cast<rlim_t>(newest) >= limit.rlim_cur / 4 * 3;
}

}  // namespace

ClientPort::ClientPort(const ClientPortOptions& options, GenerationService* service)
    : listener_(ListenOn(options.listen)), address_(ListeningAddress(listener_, options.listen)) {
  server_ = StartServer(options, service, &acceptor_);
  SetServing(false);
}

ClientPort::~ClientPort() {
  Shutdown(0);
  server_->Wait();
}

void ClientPort::AcceptConnections() {
  for (;;) {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      // Without this the loop would spin: the connection keeps waiting.
      if (errno == EMFILE || errno == ENFILE) usleep(10'000);
      return;
    }
    if (DescriptorsRunShort(fd.get())) continue;
    SendAtOnce(fd);
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.listener_fd = listener_.get();
    connection.fd = fd.release();
    acceptor_->HandleNewConnection(&connection);
  }
}

void ClientPort::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health = server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

void ClientPort::Shutdown(int seconds) {
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
}

}  // namespace jubal

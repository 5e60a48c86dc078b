#include <cstdlib>
#include <mutex>
#include <optional>

#include <fmt/format.h>

#include "launch/commands.h"
#include "launch/plan_report.h"
#include "launch/progress_line.h"
#include "launch/world.h"
#include "rpc/rank_link.h"
#include "runtime/decoder.h"
#include "runtime/engine.h"

namespace jubal {
namespace {

/// Where the link's reader thread finds the engine. The coordinator may ask for a stop while the
/// model is being loaded; requests come after SendReady.
class EngineDoor {
 public:
  /// Opens the door as long as it lives.
  class Opening {
   public:
    Opening(EngineDoor& door, Engine& engine) : door_(door) {
      const std::lock_guard lock(door_.mutex_);
      door_.engine_ = &engine;
      if (door_.stop_) engine.StopWhenIdle();
    }
    ~Opening() {
      const std::lock_guard lock(door_.mutex_);
      door_.engine_ = nullptr;
    }
    Opening(const Opening&) = delete;
    Opening& operator=(const Opening&) = delete;

   private:
    EngineDoor& door_;
  };

  void Stop() {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (engine_ != nullptr) engine_->StopWhenIdle();
  }

  template <class Call>
  void Use(Call call) {
    const std::lock_guard lock(mutex_);
    if (engine_ != nullptr) call(*engine_);
  }

 private:
  std::mutex mutex_;
  Engine* engine_ = nullptr;
  bool stop_ = false;
};

class RankProcess {
 public:
  explicit RankProcess(const Options& options) : options_(options) {}

  void Run(std::unique_ptr<Communicator> world) {
    Connect(*world);
    try {
      Serve(std::move(world));
    } catch (const CommunicationError& error) {
      // Another rank has died. The coordinator is to hear of that one first.
      LetOthersSpeakFirst();
      link_->SendFatal(error.what());
      throw;
    } catch (const std::exception& error) {
      link_->SendFatal(error.what());
      throw;
    }
  }

 private:
  void Connect(Communicator& world) {
    const int rank = world.rank();
    const char* const token = std::getenv(kControlTokenVariable);
    const RankLinkOptions link{.address = options_.coordinator,
                               .token = token == nullptr ? "" : token,
                               .epoch = options_.epoch,
                               .rank = static_cast<std::uint32_t>(rank),
                               .ranks = static_cast<std::uint32_t>(world.size())};
    RankLinkCallbacks callbacks{
        .on_submit = [this](RequestId id,
                            GenerationRequest request) { Submit(id, std::move(request)); },
        .on_cancel = [this](RequestId id) { door_.Use([&](Engine& e) { e.Cancel(id); }); },
        .on_stop = [this] { door_.Stop(); },
        .on_lost =
            [rank](const std::string& reason) {
              if (rank != 0) LetOthersSpeakFirst();
              PrintError(fmt::format("rank {}: {}", rank, reason));
              std::_Exit(EXIT_FAILURE);
            }};
    Agree(world, [&] { link_.emplace(link, std::move(callbacks)); });
  }

  void Serve(std::unique_ptr<Communicator> world) {
    const SeatedRank rank = TakeSeat(options_, std::move(world), [](const auto&, const auto&) {});
    Decoder decoder(rank.source, rank.mesh, rank.serving, ProgressLine(rank.mesh.leader()),
                    rank.gpu.get());
    Engine engine(decoder, rank.serving);
    engine.WarmUp();
    if (!rank.mesh.leader()) {
      engine.Run();
      return;
    }
    const EngineDoor::Opening opening(door_, engine);
    link_->SendReady(Info(rank, engine));
    engine.Run();
  }

  void Submit(RequestId id, GenerationRequest request) {
    door_.Use([&](Engine& engine) {
      const auto rejection =
          engine.Submit(id, std::move(request), [this](const GenerationEvent& event) {
            link_->SendEvents({&event, 1});
          });
      if (rejection) link_->SendRejected(id, *rejection);
    });
  }

  ServingInfo Info(const SeatedRank& rank, const Engine& engine) const {
    ServingInfo info{.model = rank.source.name(),
                     .family = rank.source.model().family,
                     .limits = engine.request_limits(),
                     .eos_ids = rank.source.model().eos_ids,
                     .plan = rank.mesh.plan.ToString()};
    for (const MemoryPlan& memory :
         MakePlanReport(rank.source, options_, rank.mesh.plan.world()).ranks) {
      info.weight_bytes += memory.weight_bytes;
    }
    return info;
  }

  const Options& options_;
  EngineDoor door_;
  std::optional<RankLink> link_;
};

}  // namespace

int RunRank(const Options& options) {
  // The connection closes after MPI has ended: that it closes means that the rank is gone.
  RankProcess process(options);
  return RunAsRank([&](std::unique_ptr<Communicator> world) { process.Run(std::move(world)); });
}

}  // namespace jubal

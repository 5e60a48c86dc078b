#include "tests/runtime/local_ranks.h"

#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/run.h"
#include "parallel/host_staged_communicator.h"
#include "parallel/local_communicator.h"

namespace jubal {

std::string TestPlan::ToString() const {
  return fmt::format("ranks {} {} expert {} data {}", ranks,
                     exchange == Exchange::kReplicated ? "replicated" : "all-to-all",
                     expert_parallel.value_or(0), data_parallel);
}

void OnEveryRank(const std::filesystem::path& model, const TestPlan& plan, ServingOptions options,
                 const std::function<void(Decoder&)>& work) {
  if (plan.open_gpu) options.device = Device::kCuda;
  std::vector<std::unique_ptr<Communicator>> world = MakeLocalWorld(plan.ranks);
  std::exception_ptr failure;
  std::mutex mutex;
  {
    std::vector<std::jthread> threads;
    for (auto& communicator : world) {
      threads.emplace_back([&, own = std::move(communicator)]() mutable {
        try {
#ifdef _OPENMP
          omp_set_num_threads(1);  // the ranks already share the cores
#endif
          const ModelSource source = ModelSource::Open(model);
          const ParallelPlan parallel_plan =
              MakePlan(plan.ranks, static_cast<int>(source.model().experts), plan.exchange,
                       plan.expert_parallel, plan.data_parallel);
          const std::unique_ptr<Gpu> gpu = plan.open_gpu ? plan.open_gpu() : nullptr;
          if (plan.over_world) {
            own = plan.over_world(std::move(own));
          } else if (gpu != nullptr && plan.ranks > 1) {
            own = OverHostMemory(std::move(own), *gpu);
          }
          const Mesh mesh = MakeMesh(parallel_plan, std::move(own));
          Decoder decoder(source, mesh, options, {}, gpu.get());
          work(decoder);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
        }
      });
    }
  }
  if (failure) std::rethrow_exception(failure);
}

EventSink RecordInto(Generated& result) {
  return [&result](const GenerationEvent& event) {
    if (!event.prompt_logprobs.empty()) result.prompt_logprobs = event.prompt_logprobs;
    if (event.token.has_value()) {
      result.tokens.push_back(*event.token);
      result.logprobs.push_back(event.logprob);
    }
    result.finish = event.finish;
  };
}

std::vector<Generated> Generate(const std::filesystem::path& model, const TestPlan& plan,
                                const ServingOptions& options,
                                const std::vector<GenerationRequest>& requests) {
  std::vector<Generated> results(requests.size());
  OnEveryRank(model, plan, options, [&](Decoder& decoder) {
    Engine engine(decoder, options);
    engine.WarmUp();
    if (decoder.mesh().leader()) {
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const auto rejection = engine.Submit(i + 1, requests[i], RecordInto(results[i]));
        CHECK(!rejection.has_value());
      }
      engine.StopWhenIdle();
    }
    engine.Run();
  });
  return results;
}

std::vector<std::vector<float>> TeacherForcedLogits(const std::filesystem::path& model,
                                                    const TestPlan& plan,
                                                    const ServingOptions& options,
                                                    const std::vector<TokenId>& tokens) {
  std::vector<std::vector<float>> rows(tokens.size());
  OnEveryRank(model, plan, options, [&](Decoder& decoder) {
    const auto count = static_cast<std::int32_t>(tokens.size());
    const auto chunk = static_cast<std::int32_t>(
        std::min<std::int64_t>(options.prefill_chunk, decoder.limits().max_tokens));
    const auto pages = static_cast<std::int32_t>((count + kPageTokens - 1) / kPageTokens);
    for (std::int32_t begin = 0; begin < count; begin += chunk) {
      StepPlan step;
      step.groups.resize(static_cast<std::size_t>(decoder.mesh().plan.data));
      GroupStep& group = step.groups.back();
      for (std::int32_t i = begin; i < std::min(begin + chunk, count); ++i) {
        group.tokens.push_back(tokens[static_cast<std::size_t>(i)]);
        group.positions.push_back(i);
        group.sequences.push_back(0);
        group.logit_rows.push_back(i - begin);
      }
      for (std::int32_t page = 0; page < pages; ++page)
        group.page_table.push_back(pages - 1 - page);
      group.max_pages = pages;
      decoder.Forward(step, [&](std::int64_t first, ConstTensorView logits) {
        for (std::int64_t r = 0; r < logits.size(0); ++r) {
          std::vector<float>& row = rows[static_cast<std::size_t>(begin + first + r)];
          row.resize(static_cast<std::size_t>(logits.size(1)));
          Run(Copy{.out = {reinterpret_cast<std::byte*>(row.data()), DType::kF32,
                           Shape{1, logits.size(1)}},
                   .x = logits.Rows(r, 1)},
              decoder.stream());
        }
      });
      decoder.Wait();
    }
  });
  return rows;
}

}  // namespace jubal

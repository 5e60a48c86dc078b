#include "runtime/engine.h"

#include <atomic>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/runtime/checkpoint/scratch_directory.h"
#include "tests/runtime/golden.h"
#include "tests/runtime/local_ranks.h"

namespace jubal {
namespace {

GenerationRequest Endless() {
  return {.prompt = {5, 17, 3},
          .sampling = {.temperature = 0},
          .max_tokens = 900,
          .stop_ids = {},
          .prompt_logprobs = false};
}

// A client that leaves must not keep the ranks busy, and its events must stop.
TEST(EngineTest, CancelEndsARequestInTheMiddle) {
  OnEveryRank(DemoModel(), {.ranks = 2}, {}, [](Decoder& decoder) {
    Engine engine(decoder, {});
    if (!decoder.mesh().leader()) return engine.Run();
    std::atomic<int> tokens = 0;
    ASSERT_FALSE(engine.Submit(1, Endless(), [&](const GenerationEvent& event) {
      EXPECT_FALSE(event.finish.has_value());
      if (++tokens == 3) engine.Cancel(1);
    }));
    engine.StopWhenIdle();
    engine.Run();
    EXPECT_EQ(tokens, 3);
  });
}

// SIGTERM with no patience left: unfinished requests are dropped, and every rank returns.
TEST(EngineTest, StopNowLeavesRequestsUnfinished) {
  OnEveryRank(DemoModel(), {.ranks = 3, .exchange = Exchange::kAllToAll}, {}, [](Decoder& decoder) {
    Engine engine(decoder, {});
    engine.WarmUp();
    if (!decoder.mesh().leader()) return engine.Run();
    ASSERT_FALSE(engine.Submit(1, Endless(), [&](const GenerationEvent&) { engine.StopNow(); }));
    engine.Run();
  });
}

// Requests come from other threads while the engine runs or sleeps.
TEST(EngineTest, TakesRequestsWhileItRuns) {
  OnEveryRank(DemoModel(), {}, {}, [](Decoder& decoder) {
    Engine engine(decoder, {});
    std::atomic<int> finished = 0;
    std::jthread client([&] {
      for (RequestId id = 1; id <= 5; ++id) {
        GenerationRequest request = Endless();
        request.max_tokens = 2;
        EXPECT_FALSE(engine.Submit(id, request, [&](const GenerationEvent& event) {
          finished += event.finish.has_value() ? 1 : 0;
        }));
        while (finished < static_cast<int>(id)) std::this_thread::yield();
      }
      engine.StopWhenIdle();
    });
    engine.Run();
    EXPECT_EQ(finished, 5);
  });
}

// A request that can never run is answered at once, not queued for ever.
TEST(EngineTest, RejectsWhatDoesNotFit) {
  OnEveryRank(DemoModel(), {}, {}, [](Decoder& decoder) {
    Engine engine(decoder, {});
    GenerationRequest request = Endless();
    request.max_tokens = 5000;
    const auto rejection = engine.Submit(1, request, [](const GenerationEvent&) {});
    ASSERT_TRUE(rejection.has_value());
    EXPECT_EQ(rejection->reason, Rejection::Reason::kTooLarge);
    request.max_tokens = 1;
    request.prompt = {99999999};
    EXPECT_EQ(engine.Submit(2, request, [](const GenerationEvent&) {})->field, "prompt");
  });
}

/// The error that a request meets on a model whose embedding has `value` in the first column.
std::string ErrorWithEmbedding(float value) {
  const ScratchDirectory scratch;
  const std::filesystem::path model = scratch.path() / "model";
  std::filesystem::copy(GoldenDirectory() / "grok1-gqa6", model,
                        std::filesystem::copy_options::recursive);
  const auto embedding =
      static_cast<std::streamoff>(Checkpoint::Open(model).Find("tensor00000_000")->offset);
  std::fstream file(model / "ckpt-0/tensor00000_000",
                    std::ios::in | std::ios::out | std::ios::binary);
  for (int row = 0; row < 512; ++row) {
    file.seekp(embedding + row * 96 * 4);
    file.write(reinterpret_cast<const char*>(&value), 4);
  }
  file.close();
  try {
    Generate(model, {.ranks = 1}, {},
             {{.prompt = {1, 2},
               .sampling = {},
               .max_tokens = 2,
               .stop_ids = {},
               .prompt_logprobs = false}});
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

// A damaged file must end in a sentence, not in random text or an abort.
TEST(EngineTest, DamagedWeightsEndInAnError) {
  EXPECT_NE(ErrorWithEmbedding(std::numeric_limits<float>::infinity())
                .find("tensor00000_000 holds a value that is not finite"),
            std::string::npos);
  // Finite, so that it loads, but nothing that is computed from it is.
  EXPECT_NE(ErrorWithEmbedding(3e38f).find("logits are not finite"), std::string::npos);
}

}  // namespace
}  // namespace jubal

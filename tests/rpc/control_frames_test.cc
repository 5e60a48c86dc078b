#include "rpc/control_frames.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace jubal {
namespace {

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::vector<Frame> AllFrames() {
  GenerationRequest request;
  request.prompt = {1, 2, 300000};
  request.sampling = {.temperature = 0.7f,
                      .top_k = 40,
                      .top_p = 0.9f,
                      .min_p = 0.05f,
                      .presence_penalty = -1.0f,
                      .frequency_penalty = 0.5f,
                      .repetition_penalty = 1.1f,
                      .seed = 0xfedcba9876543210};
  request.max_tokens = 17;
  request.stop_ids = {2};
  request.prompt_logprobs = true;
  const GenerationEvent first{7, {-1.5f, -0.25f}, 5, -0.125f, std::nullopt};
  const GenerationEvent last{8, {}, std::nullopt, 0.0f, FinishReason::kLength};
  ServingInfo info{.model = "grok-1",
                   .family = "grok-1",
                   .limits = {.vocabulary = 131072, .context = 8192},
                   .eos_ids = {2},
                   .weight_bytes = std::int64_t{318} << 30,
                   .plan = "tensor 8"};
  return {{1, 2, HelloFrame{.token = "secret", .ranks = 8, .pid = 4321, .host = "node7"}},
          {1, 0, ReadyFrame{info}},
          {1, 0, SubmitFrame{.id = 7, .request = request}},
          {1, 0, CancelFrame{.id = 7}},
          {3, 0, EventsFrame{{first, last}}},
          {3, 0, RejectedFrame{7, {Rejection::Reason::kQueueFull, "prompt", "The queue is full."}}},
          {3, 0, StopFrame{}},
          {3, 5, FatalFrame{"rank 5 could not read its weights"}}};
}

// If this fails, a rank does not do what the client asked for, or the client gets other tokens than
// the model drew: encoding what was decoded must give the same bytes.
TEST(ControlFramesTest, EveryFrameComesBack) {
  for (const Frame& frame : AllFrames()) {
    const std::string bytes = EncodeFrame(frame);
    const auto decoded = DecodeFrame(Bytes(bytes));
    ASSERT_TRUE(decoded);
    EXPECT_EQ(decoded->size, bytes.size());
    EXPECT_EQ(decoded->frame.epoch, frame.epoch);
    EXPECT_EQ(decoded->frame.rank, frame.rank);
    EXPECT_EQ(decoded->frame.body.index(), frame.body.index());
    EXPECT_EQ(EncodeFrame(decoded->frame), bytes);
  }
}

// If this fails, a field is left out of the protocol on both sides, which the round trip alone
// cannot see.
TEST(ControlFramesTest, SubmitCarriesEveryField) {
  const Frame sent = AllFrames()[2];
  const auto decoded = DecodeFrame(Bytes(EncodeFrame(sent)));
  const auto& got = std::get<SubmitFrame>(decoded->frame.body);
  const auto& want = std::get<SubmitFrame>(sent.body);
  EXPECT_EQ(got.id, want.id);
  EXPECT_EQ(got.request.prompt, want.request.prompt);
  EXPECT_EQ(got.request.sampling.temperature, want.request.sampling.temperature);
  EXPECT_EQ(got.request.sampling.top_k, want.request.sampling.top_k);
  EXPECT_EQ(got.request.sampling.top_p, want.request.sampling.top_p);
  EXPECT_EQ(got.request.sampling.min_p, want.request.sampling.min_p);
  EXPECT_EQ(got.request.sampling.presence_penalty, want.request.sampling.presence_penalty);
  EXPECT_EQ(got.request.sampling.frequency_penalty, want.request.sampling.frequency_penalty);
  EXPECT_EQ(got.request.sampling.repetition_penalty, want.request.sampling.repetition_penalty);
  EXPECT_EQ(got.request.sampling.seed, want.request.sampling.seed);
  EXPECT_EQ(got.request.max_tokens, want.request.max_tokens);
  EXPECT_EQ(got.request.stop_ids, want.request.stop_ids);
  EXPECT_EQ(got.request.prompt_logprobs, want.request.prompt_logprobs);
}

// If this fails, clients get tokens, probabilities or ends that the model did not give.
TEST(ControlFramesTest, EventsCarryEveryField) {
  const auto decoded = DecodeFrame(Bytes(EncodeFrame(AllFrames()[4])));
  const auto& events = std::get<EventsFrame>(decoded->frame.body).events;
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].id, 7u);
  EXPECT_EQ(events[0].prompt_logprobs, (std::vector<float>{-1.5f, -0.25f}));
  EXPECT_EQ(events[0].token, 5);
  EXPECT_EQ(events[0].logprob, -0.125f);
  EXPECT_EQ(events[0].finish, std::nullopt);
  EXPECT_EQ(events[1].id, 8u);
  EXPECT_EQ(events[1].token, std::nullopt);
  EXPECT_EQ(events[1].finish, FinishReason::kLength);
}

// If this fails, a frame that has come only in part is taken for a whole or a broken one.
TEST(ControlFramesTest, EveryBeginningAsksForMore) {
  for (const Frame& frame : AllFrames()) {
    const std::string bytes = EncodeFrame(frame);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_FALSE(DecodeFrame(Bytes(bytes).first(size))) << size;
    }
  }
}

// If this fails, a damaged frame changes a request or kills the coordinator, instead of ending the
// connection. A damaged length may ask for more bytes, which never come.
TEST(ControlFramesTest, EveryFlippedBitIsSeen) {
  for (const Frame& frame : AllFrames()) {
    const std::string bytes = EncodeFrame(frame);
    for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string damaged = bytes;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
      try {
        EXPECT_FALSE(DecodeFrame(Bytes(damaged)))
            << "type " << frame.body.index() << " bit " << bit;
      } catch (const FrameError&) {
      }
    }
  }
}

// If this fails, a stranger makes the coordinator hold as many bytes as it cares to announce.
TEST(ControlFramesTest, TooLongIsRefusedFromTheHeader) {
  const std::string bytes = EncodeFrame({1, 0, FatalFrame{std::string(5000, 'x')}});
  EXPECT_THROW(DecodeFrame(Bytes(bytes).first(kFrameHeaderBytes), 4096), FrameError);
  EXPECT_TRUE(DecodeFrame(Bytes(bytes), 5004));
}

// If this fails, frames get lost or mixed up where the network cuts the stream differently.
TEST(ControlFramesTest, ReaderCutsAnyStream) {
  std::string stream;
  for (const Frame& frame : AllFrames()) stream += EncodeFrame(frame);
  for (const std::size_t piece : {1ul, 7ul, 33ul, stream.size()}) {
    FrameReader reader(kMaxFramePayload);
    std::string again;
    for (std::size_t begin = 0; begin < stream.size(); begin += piece) {
      reader.Append(Bytes(stream).subspan(begin, std::min(piece, stream.size() - begin)));
      while (const auto frame = reader.Next()) again += EncodeFrame(*frame);
    }
    EXPECT_EQ(again, stream) << "pieces of " << piece;
  }
}

}  // namespace
}  // namespace jubal

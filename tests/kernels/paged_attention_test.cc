#include "kernels/paged_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/run.h"
#include "tests/kernels/cpu_tier_test.h"

namespace jubal {
namespace {

struct Model {
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  KvType type;
  float soft_cap;
};

/// The keys and values of one sequence, and its query for each position.
struct Sequence {
  std::vector<float> q;  // [tokens, heads · head_dim]
  std::vector<float> k;  // [tokens, kv heads · head_dim]
  std::vector<float> v;
  std::int64_t tokens;
};

std::vector<float> Normal(std::int64_t count, std::uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

Sequence MakeSequence(const Model& model, std::int64_t tokens, std::uint32_t seed) {
  return {Normal(tokens * model.heads * model.head_dim, 3 * seed, 3.0f),
          Normal(tokens * model.kv_heads * model.head_dim, 3 * seed + 1),
          Normal(tokens * model.kv_heads * model.head_dim, 3 * seed + 2), tokens};
}

std::int64_t PagesFor(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

/// A pool of pages whose unused bytes are poison: NaN in f32, large in the integers.
class Pool {
 public:
  Pool(const Model& model, std::int64_t num_pages) {
    layer_ = {.num_pages = num_pages,
              .heads = model.kv_heads,
              .head_dim = model.head_dim,
              .type = model.type};
    const auto bytes = static_cast<std::size_t>(num_pages * layer_.PageBytes());
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    std::memset(memory_.get(), model.type == KvType::kF32 ? 0xFF : 0x7F, bytes);
    layer_.data = memory_.get();
  }
  const KvLayer& layer() const { return layer_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  KvLayer layer_;
};

/// Tokens of one step: which position of which sequence.
struct Step {
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> sequences;
};

ConstTensorView View(const std::vector<float>& values, std::int64_t columns) {
  const auto rows = static_cast<std::int64_t>(values.size()) / columns;
  return {reinterpret_cast<const std::byte*>(values.data()), DType::kF32, {rows, columns}};
}

ConstTensorView View(const std::vector<std::int32_t>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()),
          DType::kI32,
          {static_cast<std::int64_t>(values.size())}};
}

std::vector<std::int32_t> KvHeads(const Model& model) {
  std::vector<std::int32_t> kv_heads;
  for (std::int64_t h = 0; h < model.heads; ++h) {
    kv_heads.push_back(static_cast<std::int32_t>(h * model.kv_heads / model.heads));
  }
  return kv_heads;
}

/// Sequences in a pool, their pages in the order that `page_seed` shuffles.
class Cache {
 public:
  Cache(const Model& model, std::vector<Sequence> sequences, std::uint32_t page_seed)
      : model_(model),
        sequences_(std::move(sequences)),
        max_pages_(LongestPages()),
        pool_(model, max_pages_ * std::ssize(sequences_) + 3) {
    std::vector<std::int32_t> free(static_cast<std::size_t>(pool_.layer().num_pages));
    std::iota(free.begin(), free.end(), 0);
    if (page_seed != 0) std::shuffle(free.begin(), free.end(), std::mt19937(page_seed));
    table_.assign(static_cast<std::size_t>(max_pages_ * std::ssize(sequences_)), -1);
    std::size_t next = 0;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      for (std::int64_t p = 0; p < PagesFor(sequences_[s].tokens); ++p) {
        table_[s * static_cast<std::size_t>(max_pages_) + static_cast<std::size_t>(p)] =
            free[next++];
      }
    }
    Step all;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      for (std::int64_t t = 0; t < sequences_[s].tokens; ++t) {
        all.positions.push_back(static_cast<std::int32_t>(t));
        all.sequences.push_back(static_cast<std::int32_t>(s));
      }
    }
    const std::int64_t columns = model_.kv_heads * model_.head_dim;
    const std::vector<float> k = Gather(all, columns, &Sequence::k);
    const std::vector<float> v = Gather(all, columns, &Sequence::v);
    Stream stream;
    Run(StoreKv{pool_.layer(), View(k, columns), View(v, columns), Places(all)}, stream);
  }

  TokenPlaces Places(const Step& step) const {
    return {View(step.positions), View(step.sequences),
            ConstTensorView(reinterpret_cast<const std::byte*>(table_.data()), DType::kI32,
                            {std::ssize(sequences_), max_pages_})};
  }

  std::vector<float> Attend(const Step& step, bool reference) const {
    const std::int64_t columns = model_.heads * model_.head_dim;
    const std::vector<float> q = Gather(step, columns, &Sequence::q);
    const std::vector<std::int32_t> kv_heads = KvHeads(model_);
    std::vector<float> out(q.size(), NAN);
    const PagedAttention op{
        .out = TensorView(reinterpret_cast<std::byte*>(out.data()), DType::kF32,
                          {std::ssize(step.positions), columns}),
        .q = View(q, columns),
        .pages = pool_.layer(),
        .places = Places(step),
        .kv_heads = View(kv_heads),
        .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim)),
        .soft_cap = model_.soft_cap,
    };
    Stream stream;
    reference ? RunSpecification(op) : Run(op, stream);
    return out;
  }

  const std::vector<Sequence>& sequences() const { return sequences_; }

 private:
  std::int64_t LongestPages() const {
    std::int64_t longest = 1;
    for (const Sequence& sequence : sequences_) {
      longest = std::max(longest, PagesFor(sequence.tokens));
    }
    return longest;
  }

  std::vector<float> Gather(const Step& step, std::int64_t columns,
                            std::vector<float> Sequence::*what) const {
    std::vector<float> rows;
    for (std::size_t i = 0; i < step.positions.size(); ++i) {
      const std::vector<float>& from =
          sequences_[static_cast<std::size_t>(step.sequences[i])].*what;
      const auto begin = from.begin() + step.positions[i] * columns;
      rows.insert(rows.end(), begin, begin + columns);
    }
    return rows;
  }

  Model model_;
  std::vector<Sequence> sequences_;
  std::int64_t max_pages_;
  Pool pool_;
  std::vector<std::int32_t> table_;
};

/// Attention in double over what the cache type keeps of the keys and values.
std::vector<double> AttendInDouble(const Model& model, const Sequence& sequence,
                                   std::int64_t position) {
  const auto stored = [&](const std::vector<float>& rows, std::int64_t begin, std::int64_t d) {
    const auto at = [&](std::int64_t i) { return rows[static_cast<std::size_t>(begin + i)]; };
    if (model.type == KvType::kF32) return static_cast<double>(at(d));
    float largest = 0.0f;
    for (std::int64_t i = 0; i < model.head_dim; ++i) {
      largest = std::max(largest, std::fabs(at(i)));
    }
    const float scale = largest / (model.type == KvType::kInt16 ? 32767.0f : 127.0f);
    return static_cast<double>(std::rint(at(d) / scale)) * scale;
  };
  std::vector<double> out;
  for (std::int64_t h = 0; h < model.heads; ++h) {
    const std::int64_t kv_head = h * model.kv_heads / model.heads;
    const auto row = [&](std::int64_t t) {
      return (t * model.kv_heads + kv_head) * model.head_dim;
    };
    std::vector<double> scores;
    for (std::int64_t t = 0; t <= position; ++t) {
      double s = 0.0;
      for (std::int64_t d = 0; d < model.head_dim; ++d) {
        const auto q = static_cast<std::size_t>((position * model.heads + h) * model.head_dim + d);
        s += sequence.q[q] * stored(sequence.k, row(t), d);
      }
      s /= std::sqrt(static_cast<double>(model.head_dim));
      if (model.soft_cap != 0.0f) s = model.soft_cap * std::tanh(s / model.soft_cap);
      scores.push_back(s);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (double& s : scores) sum += s = std::exp(s - max);
    for (std::int64_t d = 0; d < model.head_dim; ++d) {
      double o = 0.0;
      for (std::int64_t t = 0; t <= position; ++t) {
        o += scores[static_cast<std::size_t>(t)] * stored(sequence.v, row(t), d);
      }
      out.push_back(o / sum);
    }
  }
  return out;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

using PagedAttentionTier = CpuTierTest;

INSTANTIATE_TEST_SUITE_P(Tiers, PagedAttentionTier, testing::ValuesIn(kAllCpuIsas),
                         CpuTierTest::Name);

constexpr KvType kTypes[] = {KvType::kF32, KvType::kInt16, KvType::kInt8};
constexpr std::int64_t kLengths[] = {1, 31, 32, 33, 511, 512, 513, 1100};

// Breaks: attention computes something else than the paper, in every form alike.
TEST(PagedAttentionTest, ReferenceAgreesWithDoublePrecision) {
  for (const KvType type : kTypes) {
    for (const float soft_cap : {0.0f, 30.0f}) {
      const Model model{4, 2, 16, type, soft_cap};
      const Cache cache(model, {MakeSequence(model, 1100, 1)}, 7);
      for (const std::int64_t length : kLengths) {
        const auto position = static_cast<std::int32_t>(length - 1);
        const std::vector<float> out = cache.Attend({{position}, {0}}, true);
        const std::vector<double> expected = AttendInDouble(model, cache.sequences()[0], position);
        // |s| stays below about 20, so a score is off by up to (16 + 4) · 2⁻²⁴ · Σ|q k| ≈ 3e-5
        // and a weight by that share; |v| < 5.
        for (std::size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], expected[i], 1e-4) << "length " << length << " element " << i;
        }
      }
    }
  }
}

// Breaks: what users get differs from the specification, on some CPU, length, head count or type,
// and ranks with different CPUs disagree.
TEST_P(PagedAttentionTier, HasTheBitsOfTheReference) {
  for (const KvType type : kTypes) {
    for (const std::int64_t group : {1, 2, 3, 4, 5, 6, 7, 16}) {
      for (const float soft_cap : {0.0f, 30.0f}) {
        const std::int64_t kv_heads = group > 6 ? 1 : 2;
        const Model model{kv_heads * group, kv_heads, group == 3 ? 20 : 16, type, soft_cap};
        const Cache cache(model, {MakeSequence(model, 1100, 2)}, 9);
        for (const std::int64_t length : kLengths) {
          const Step step{{static_cast<std::int32_t>(length - 1)}, {0}};
          ASSERT_TRUE(SameBits(cache.Attend(step, false), cache.Attend(step, true)))
              << "length " << length << " group " << group << " type " << static_cast<int>(type);
        }
      }
    }
  }
}

// Breaks: models whose heads are not a multiple of a vector wide, tiny and huge ones.
TEST_P(PagedAttentionTier, TakesAnyHeadDimension) {
  for (const KvType type : kTypes) {
    for (const std::int64_t head_dim : {1, 5, 8, 17, 24, 80, 128, 256}) {
      for (const std::int64_t heads : {3, 6, 8}) {
        const Model model{heads, 1, head_dim, type, 30.0f};
        const Cache cache(model, {MakeSequence(model, 70, 3)}, 5);
        const Step step{{69, 40}, {0, 0}};
        ASSERT_TRUE(SameBits(cache.Attend(step, false), cache.Attend(step, true)))
            << "head_dim " << head_dim << " heads " << heads << " type " << static_cast<int>(type);
      }
    }
  }
}

// Breaks: a request's tokens depend on which other requests are running, on where its pages lie or
// on how its prompt was cut into steps.
TEST_P(PagedAttentionTier, ATokenDependsOnItsSequenceAlone) {
  for (const KvType type : kTypes) {
    const Model model{6, 2, 32, type, 30.0f};
    std::vector<Sequence> sequences;
    Step batch;
    for (std::int32_t s = 0; s < 37; ++s) {
      const std::int64_t tokens = 1 + 41 * s % 600;
      sequences.push_back(MakeSequence(model, tokens, 100 + static_cast<std::uint32_t>(s)));
      batch.positions.push_back(static_cast<std::int32_t>(tokens - 1));
      batch.sequences.push_back(s);
    }
    // Two tokens of one prompt, among the others.
    batch.positions.insert(batch.positions.begin() + 5, {300, 301});
    batch.sequences.insert(batch.sequences.begin() + 5, {8, 8});
    const Cache together(model, sequences, 11);
    const std::vector<float> outs = together.Attend(batch, false);
    const auto columns = static_cast<std::size_t>(model.heads * model.head_dim);
    for (std::size_t i = 0; i < batch.positions.size(); ++i) {
      const auto s = static_cast<std::size_t>(batch.sequences[i]);
      const Cache alone(model, {sequences[s]}, 0);
      const std::vector<float> out = alone.Attend({{batch.positions[i]}, {0}}, false);
      ASSERT_EQ(std::memcmp(out.data(), outs.data() + i * columns, columns * sizeof(float)), 0)
          << "token " << i;
    }
  }
}

// Breaks: a head's result depends on how many of its neighbours the same rank has.
TEST_P(PagedAttentionTier, AHeadDoesNotDependOnItsNeighbours) {
  const Model six{6, 1, 32, KvType::kInt16, 30.0f};
  const Model one{1, 1, 32, KvType::kInt16, 30.0f};
  const Sequence sequence = MakeSequence(six, 600, 4);
  const std::vector<float> all = Cache(six, {sequence}, 1).Attend({{599}, {0}}, false);
  for (std::int64_t h = 0; h < 6; ++h) {
    Sequence single = sequence;
    single.q.clear();
    for (std::int64_t t = 0; t < 600; ++t) {
      const auto begin = sequence.q.begin() + (t * 6 + h) * 32;
      single.q.insert(single.q.end(), begin, begin + 32);
    }
    const std::vector<float> out = Cache(one, {single}, 1).Attend({{599}, {0}}, false);
    EXPECT_EQ(std::memcmp(out.data(), all.data() + h * 32, 32 * sizeof(float)), 0) << h;
  }
}

// Breaks: an idle step crashes.
TEST_P(PagedAttentionTier, TakesNoTokens) {
  const Model model{2, 1, 16, KvType::kInt16, 0.0f};
  const Cache cache(model, {MakeSequence(model, 1, 5)}, 0);
  EXPECT_TRUE(cache.Attend({}, false).empty());
  EXPECT_TRUE(cache.Attend({}, true).empty());
}

// Breaks: with one key the softmax is 1, so the value must come back as it was stored.
TEST(PagedAttentionTest, OneKeyGivesItsValue) {
  const Model model{1, 1, 3, KvType::kInt8, 0.0f};
  const Sequence sequence{{1.0f, 2.0f, 3.0f}, {0.0f, 0.0f, 0.0f}, {127.0f, -63.4f, 0.6f}, 1};
  const std::vector<float> out = Cache(model, {sequence}, 0).Attend({{0}, {0}}, false);
  EXPECT_EQ(out, (std::vector<float>{127.0f, -63.0f, 1.0f}));
}

// Breaks: the KV budget and the kernels disagree about the size of a page.
TEST(KvLayerTest, SizesFollowTheLayout) {
  KvLayer layer{.heads = 8, .head_dim = 128, .type = KvType::kInt16};
  EXPECT_EQ(layer.HeadBytes(), 2 * 128 * 32 * 2 + 2 * 32 * 4);
  EXPECT_EQ(layer.PageBytes(), 8 * (2 * 128 * 32 * 2 + 2 * 32 * 4));
  layer.type = KvType::kInt8;
  EXPECT_EQ(layer.HeadBytes(), 2 * 128 * 32 + 2 * 32 * 4);
}

// Breaks: keys land in another token's place, so that requests read each other's.
TEST(StoreKvTest, PutsEachElementWhereThePageLayoutSays) {
  const Model model{2, 2, 4, KvType::kF32, 0.0f};
  const Pool pool(model, 3);
  const std::vector<float> k = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<float> v = {11, 12, 13, 14, 15, 16, 17, 18};
  const std::vector<std::int32_t> position = {35};  // slot 3 of the second page
  const std::vector<std::int32_t> sequence = {0};
  const std::vector<std::int32_t> table = {0, 2};
  Stream stream;
  jubal::Run(StoreKv{pool.layer(),
                     View(k, 8),
                     View(v, 8),
                     {View(position), View(sequence), View(table).Reshaped({1, 2})}},
             stream);
  const auto* page =
      reinterpret_cast<const float*>(pool.layer().data + 2 * pool.layer().PageBytes());
  for (std::size_t head = 0; head < 2; ++head) {
    const float* at = page + head * 2 * 4 * 32;
    for (std::size_t d = 0; d < 4; ++d) {
      EXPECT_EQ(at[d * 32 + 3], k[head * 4 + d]);
      EXPECT_EQ(at[4 * 32 + 3 * 4 + d], v[head * 4 + d]);
      EXPECT_TRUE(std::isnan(at[d * 32 + 2]));
      EXPECT_TRUE(std::isnan(at[4 * 32 + 4 * 4 + d]));
    }
  }
}

// Breaks: an all-zero key divides by zero and poisons its sequence.
TEST(StoreKvTest, ZerosSurviveIntegers) {
  const Model model{1, 1, 4, KvType::kInt8, 0.0f};
  const Sequence sequence{Normal(4, 1), std::vector<float>(4), std::vector<float>(4), 1};
  EXPECT_EQ(Cache(model, {sequence}, 0).Attend({{0}, {0}}, false), std::vector<float>(4));
}

}  // namespace
}  // namespace jubal

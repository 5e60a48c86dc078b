#include "kernels/paged_attention.h"

#include <limits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/forms.h"
#include "kernels/float_math.h"
#include "kernels/paged_attention_forms.h"

// Two kernels. Attend gives a block one run of keys, one KV head and a tile of neighbouring
// tokens: those of one sequence, with all their query heads on that KV head, share what is loaded
// of K and V. CombineRuns then goes through a token's runs in ascending order. Each sum has the
// order that the reference has, whatever the tile.

namespace jubal {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRun = kAttentionRun;
constexpr int kPage = kPageTokens;
constexpr int kBatchBytes = 64;  // that a thread loads before it computes for one token
constexpr float kInfinity = std::numeric_limits<float>::infinity();
static_assert(kRun == 4 * kThreads);  // a thread scores four neighbouring keys

struct Arguments {
  float* out;
  std::int64_t out_stride;
  const float* q;
  std::int64_t q_stride;
  int tokens;
  const std::byte* pool;
  std::int64_t page_bytes;
  std::int64_t head_bytes;
  std::int64_t num_pages;
  int head_dim;
  const std::int32_t* positions;
  const std::int32_t* sequences;
  const std::int32_t* page_table;
  std::int64_t page_table_stride;
  int num_sequences;
  int max_pages;
  const std::int32_t* kv_heads;
  int heads;
  float scale;
  float soft_cap;
  int runs;           // that a sequence can have
  float2* softmaxes;  // [tokens, heads, runs]: maximum and sum of each run
  float* sums;        // [tokens, heads, runs, head_dim]

  /// Keys that the token sees.
  __device__ int Keys(int token) const {
    const int position = positions[token];
    if (position < 0 || position >= max_pages * kPage) __trap();
    return position + 1;
  }
  /// Where the workspace keeps a run of a token and query head.
  __device__ std::int64_t RunIndex(int token, int head, int run) const {
    return (std::int64_t{token} * heads + head) * runs + run;
  }
};

/// Bytes to floats: under the exponent of 2²³ a byte stands for itself.
__device__ __forceinline__ float WidenLow(unsigned bits, unsigned mask, float offset) {
  return __uint_as_float((bits & mask) | 0x4b000000u) - (8388608.0f + offset);
}

// Four neighbouring elements as loaded, and as floats.

struct F32 {
  using Element = float;
  using Four = float4;
  static constexpr bool kHasScales = false;
  __device__ static void Widen(float4 four, float (&x)[4]) {
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
  }
};
struct Int16 {
  using Element = std::int16_t;
  using Four = uint2;
  static constexpr bool kHasScales = true;
  __device__ static void Widen(uint2 four, float (&x)[4]) {
    const unsigned low = four.x ^ 0x80008000u;
    const unsigned high = four.y ^ 0x80008000u;
    x[0] = WidenLow(low, 0xffffu, 32768.0f);
    x[1] = WidenLow(low >> 16, 0xffffu, 32768.0f);
    x[2] = WidenLow(high, 0xffffu, 32768.0f);
    x[3] = WidenLow(high >> 16, 0xffffu, 32768.0f);
  }
};
struct Int8 {
  using Element = std::int8_t;
  using Four = unsigned;
  static constexpr bool kHasScales = true;
  __device__ static void Widen(unsigned four, float (&x)[4]) {
    const unsigned bits = four ^ 0x80808080u;
    x[0] = WidenLow(bits, 0xffu, 128.0f);
    x[1] = WidenLow(bits >> 8, 0xffu, 128.0f);
    x[2] = WidenLow(bits >> 16, 0xffu, 128.0f);
    x[3] = WidenLow(bits >> 24, 0xffu, 128.0f);
  }
};

__device__ __forceinline__ void GetFour(const float* from, float (&x)[4]) {
  F32::Widen(*reinterpret_cast<const float4*>(from), x);
}
__device__ __forceinline__ void PutFour(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = float4{x[0], x[1], x[2], x[3]};
}
/// sums += factor · x, fused.
__device__ __forceinline__ void MultiplyAdd(float factor, const float (&x)[4], float (&sums)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] = __fmaf_rn(factor, x[e], sums[e]);
}
/// The runs of a token so far.
struct Softmax {
  float max = -kInfinity;
  float denominator = 0.0f;

  struct Factors {
    float old;
    float run;
  };
  /// Adds a run: its own sums and those so far are to be scaled by the factors.
  __device__ Factors Add(float run_max, float run_sum) {
    const float new_max = fmaxf(max, run_max);
    const Factors factors{FastExp(max - new_max), FastExp(run_max - new_max)};
    denominator = denominator * factors.old + run_sum * factors.run;
    max = new_max;
    return factors;
  }
};

template <int kHeads, int kTokens>
struct Shared {
  static constexpr int kQueries = kHeads * kTokens;
  // A row is 8 floats longer than a run, so that neighbouring rows lie in other banks.
  union {
    float q[kQueries][kMaxHeadDim];  // until all scores are known
    float weights[kQueries][kRun + kAttentionLanes];
  };
  float max[kWarps][kQueries];  // of the keys of each warp
  float sums[kQueries];         // of the weights
  int counts[kTokens];          // keys of the run that each token sees

  __device__ float Max(int query) const {
    float of_run = -kInfinity;
    for (int warp = 0; warp < kWarps; ++warp) of_run = fmaxf(of_run, max[warp][query]);
    return of_run;
  }
};

/// Some of the query heads of some tokens of one sequence: what shares its loads.
struct Tile {
  int first_token;
  int tokens;  // 1 … kTokens
  int first_head;
  int heads;  // 1 … kHeads
  int kv_head;
};

/// The block's run of keys for the tile. Query n is token n / kHeads and head n % kHeads.
template <class Kv, int kHeads, int kTokens>
__device__ __forceinline__ void AttendRun(const Arguments& a, const Tile& tile) {
  using Four = typename Kv::Four;
  constexpr int kQueries = kHeads * kTokens;
  constexpr int kBatch = kTokens > 1 ? 4 : kBatchBytes / static_cast<int>(sizeof(Four));
  constexpr int kElement = sizeof(typename Kv::Element);
  auto& shared = BlockShared<Shared<kHeads, kTokens>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int head_dim = a.head_dim;
  const int matrix_bytes = head_dim * kPage * kElement;
  const int begin = static_cast<int>(blockIdx.z) * kRun;
  const int sequence = a.sequences[tile.first_token];
  if (sequence < 0 || sequence >= a.num_sequences) __trap();
  // Keys of the run that a token sees.
  const auto count_of = [&](int t) {
    return t < tile.tokens ? min(max(a.Keys(tile.first_token + t) - begin, 0), kRun) : 0;
  };
  int most = 0;
  for (int t = 0; t < tile.tokens; ++t) most = max(most, count_of(t));
  if (most == 0) return;
  const std::int32_t* pages = a.page_table + sequence * a.page_table_stride + begin / kPage;
  const auto head_in_page = [&](int page) {
    const std::int32_t number = pages[page];
    if (number < 0 || number >= a.num_pages) __trap();
    return a.pool + number * a.page_bytes + tile.kv_head * a.head_bytes;
  };

  __syncthreads();  // all are done with the tile before
  if (thread < kTokens) shared.counts[thread] = count_of(thread);
  for (int i = thread; i < kQueries * head_dim; i += kThreads) {
    const int query = i / head_dim;
    const int d = i % head_dim;
    const int t = query / kHeads;
    const int h = query % kHeads;
    shared.q[query][d] = t < tile.tokens && h < tile.heads
                             ? a.q[(tile.first_token + t) * a.q_stride +
                                   std::int64_t{tile.first_head + h} * head_dim + d]
                             : 0.0f;
  }
  __syncthreads();

  // Four neighbouring keys each, in one page.
  const int first_key = 4 * thread;
  const bool has_keys = first_key < most;
  const std::byte* head = has_keys ? head_in_page(first_key / kPage) : nullptr;
  float scores[kQueries][4] = {};
  if (has_keys) {
    const auto load = [&](int d) {
      return __ldg(
          reinterpret_cast<const Four*>(head + (d * kPage + first_key % kPage) * kElement));
    };
    int d = 0;
#pragma unroll 1
    for (; d + kBatch <= head_dim; d += kBatch) {
      Four loaded[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) loaded[i] = load(d + i);
#pragma unroll
      for (int i = 0; i < kBatch; i += 4) {
        float k[4][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) Kv::Widen(loaded[i + j], k[j]);
#pragma unroll
        for (int n = 0; n < kQueries; ++n) {
          float q[4];
          GetFour(&shared.q[n][d + i], q);
#pragma unroll
          for (int j = 0; j < 4; ++j) MultiplyAdd(q[j], k[j], scores[n]);
        }
      }
    }
#pragma unroll 1
    for (; d < head_dim; ++d) {
      float k[4];
      Kv::Widen(load(d), k);
#pragma unroll
      for (int n = 0; n < kQueries; ++n) MultiplyAdd(shared.q[n][d], k, scores[n]);
    }
  }
  __syncthreads();  // the queries are not needed any more
#pragma unroll
  for (int n = 0; n < kQueries; ++n) PutFour(&shared.weights[n][first_key], scores[n]);

  // From here to the sums a thread has its own four columns of the weights. First the products
  // become scores.
  const float inverse_cap = 1.0f / a.soft_cap;
  float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  const auto load_scales = [&](int slot) {
    F32::Widen(__ldg(reinterpret_cast<const float4*>(head + 2 * matrix_bytes) + slot / 4), scales);
  };
  if (Kv::kHasScales && has_keys) load_scales(first_key % kPage);
#pragma unroll 2
  for (int n = 0; n < kQueries; ++n) {
    float four[4];
    GetFour(&shared.weights[n][first_key], four);
    float largest = -kInfinity;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (Kv::kHasScales) four[e] *= scales[e];
      four[e] *= a.scale;
      if (a.soft_cap != 0.0f) four[e] = a.soft_cap * FastTanh(four[e] * inverse_cap);
      if (first_key + e < shared.counts[n / kHeads]) largest = fmaxf(largest, four[e]);
    }
    PutFour(&shared.weights[n][first_key], four);
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
    }
    if (thread % kWarp == 0) shared.max[thread / kWarp][n] = largest;
  }
  __syncthreads();

  // Scores to weights: 0 for keys that the token does not see.
#pragma unroll 2
  for (int n = 0; n < kQueries; ++n) {
    const float of_run = shared.Max(n);
    float four[4];
    GetFour(&shared.weights[n][first_key], four);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool seen = first_key + e < shared.counts[n / kHeads];
      four[e] = seen ? FastExp(four[e] - of_run) : 0.0f;
    }
    PutFour(&shared.weights[n][first_key], four);
  }
  __syncthreads();

  // Eight threads add up a query's weights, each a lane of the reference's.
  constexpr int kAtOnce = kThreads / kAttentionLanes;
#pragma unroll 1
  for (int first = 0; first < kQueries; first += kAtOnce) {
    const int query = first + thread / kAttentionLanes;
    float sum = 0.0f;
    if (query < kQueries) {
      const float* weights = shared.weights[query] + thread % kAttentionLanes;
#pragma unroll 8
      for (int key = 0; key < most; key += kAttentionLanes) sum += weights[key];
    }
    for (int lanes = 1; lanes < kAttentionLanes; lanes *= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, lanes);
    }
    if (query >= kQueries || thread % kAttentionLanes != 0) continue;
    shared.sums[query] = sum;
    const int token = tile.first_token + query / kHeads;
    const int h = query % kHeads;
    if (query / kHeads < tile.tokens && h < tile.heads && a.Keys(token) > kRun) {
      a.softmaxes[a.RunIndex(token, tile.first_head + h, static_cast<int>(blockIdx.z))] =
          float2{shared.Max(query), sum};
    }
  }
  __syncthreads();

  if (Kv::kHasScales) {
    if (has_keys) {
      load_scales(kPage + first_key % kPage);
#pragma unroll 2
      for (int n = 0; n < kQueries; ++n) {
        float four[4];
        GetFour(&shared.weights[n][first_key], four);
#pragma unroll
        for (int e = 0; e < 4; ++e) four[e] *= scales[e];
        PutFour(&shared.weights[n][first_key], four);
      }
    }
    __syncthreads();
  }

  // A thread adds up four neighbouring elements of the values for kGroup queries of one token.
  constexpr int kGroup = (kQueries + 3) / 4;
  static_assert(kHeads % kGroup == 0);
  const int quads = (head_dim + 3) / 4;
#pragma unroll 1
  for (int item = thread; item < quads * (kQueries / kGroup); item += kThreads) {
    const int first_query = item / quads * kGroup;
    const int first_d = item % quads * 4;
    const int first_head = first_query % kHeads;
    const int count = shared.counts[first_query / kHeads];
    if (count == 0 || first_head >= tile.heads) continue;
    float sums[kGroup][4] = {};
#pragma unroll 1
    for (int first = 0; first < count; first += kBatch) {
      const std::byte* v = head_in_page(first / kPage) + matrix_bytes;
      const int place = first % kPage * head_dim + first_d;
      if (first + kBatch <= count && head_dim % 4 == 0) {
        Four loaded[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          loaded[i] = __ldg(reinterpret_cast<const Four*>(v + (place + i * head_dim) * kElement));
        }
#pragma unroll
        for (int i = 0; i < kBatch; i += 4) {
          float values[4][4];
#pragma unroll
          for (int j = 0; j < 4; ++j) Kv::Widen(loaded[i + j], values[j]);
#pragma unroll
          for (int n = 0; n < kGroup; ++n) {
            float weights[4];
            GetFour(&shared.weights[first_query + n][first + i], weights);
#pragma unroll
            for (int j = 0; j < 4; ++j) MultiplyAdd(weights[j], values[j], sums[n]);
          }
        }
        continue;
      }
      const auto* elements = reinterpret_cast<const typename Kv::Element*>(v) + place;
#pragma unroll 4
      for (int i = 0; i < min(kBatch, count - first); ++i) {
        float values[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          values[e] =
              first_d + e < head_dim ? static_cast<float>(elements[i * head_dim + e]) : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < kGroup; ++n) {
          MultiplyAdd(shared.weights[first_query + n][first + i], values, sums[n]);
        }
      }
    }
    const int token = tile.first_token + first_query / kHeads;
    const int keys = a.Keys(token);
#pragma unroll
    for (int n = 0; n < kGroup; ++n) {
      if (first_head + n >= tile.heads) break;
      const int h = tile.first_head + first_head + n;
      float* out = nullptr;
      if (keys > kRun) {
        out = a.sums + a.RunIndex(token, h, static_cast<int>(blockIdx.z)) * head_dim;
      } else {
        out = a.out + token * a.out_stride + std::int64_t{h} * head_dim;
        Softmax softmax;
        const Softmax::Factors factors =
            softmax.Add(shared.Max(first_query + n), shared.sums[first_query + n]);
#pragma unroll
        for (float& sum : sums[n]) {
          sum = (0.0f * factors.old + sum * factors.run) / softmax.denominator;
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (first_d + e < head_dim) out[first_d + e] = sums[n][e];
      }
    }
  }
}

/// Grid: tiles of kTokens tokens, KV heads, runs.
template <class Kv, int kHeads, int kTokens>
__global__ void __launch_bounds__(kThreads, kTokens == 1 ? 4 : 3) Attend(Arguments a) {
  // The query heads on this KV head are neighbours.
  const int kv_head = static_cast<int>(blockIdx.y);
  int first_head = 0;
  int heads = 0;
  for (int begin = 0; begin < a.heads; begin += kWarp) {
    const int h = begin + static_cast<int>(threadIdx.x) % kWarp;
    const unsigned lanes =
        __ballot_sync(kFullWarp, h < a.heads && a.kv_heads[h] == kv_head ? 1 : 0);
    if (heads == 0) first_head = begin + __ffs(static_cast<int>(lanes)) - 1;
    heads += __popc(lanes);
  }
  const int first = static_cast<int>(blockIdx.x) * kTokens;
  const int end = min(first + kTokens, a.tokens);
  for (int token = first; token < end;) {
    int next = token + 1;
    while (next < end && a.sequences[next] == a.sequences[token]) ++next;
    for (int h = 0; h < heads; h += kHeads) {
      const Tile tile{token, next - token, first_head + h, min(kHeads, heads - h), kv_head};
      if (tile.tokens == 1) {
        AttendRun<Kv, kHeads, 1>(a, tile);
      } else if constexpr (kTokens > 1) {
        AttendRun<Kv, kHeads, kTokens>(a, tile);
      }
    }
    token = next;
  }
}

/// Grid: tokens, query heads.
__global__ void __launch_bounds__(kThreads) CombineRuns(Arguments a) {
  const int token = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int keys = a.Keys(token);
  if (keys <= kRun) return;
  const float2* softmaxes = a.softmaxes + a.RunIndex(token, head, 0);
  const float* sums = a.sums + a.RunIndex(token, head, 0) * a.head_dim;
  float* out = a.out + token * a.out_stride + std::int64_t{head} * a.head_dim;
  for (int d = static_cast<int>(threadIdx.x); d < a.head_dim; d += kThreads) {
    Softmax softmax;
    float total = 0.0f;
    for (int run = 0; run * kRun < keys; ++run) {
      const Softmax::Factors factors = softmax.Add(softmaxes[run].x, softmaxes[run].y);
      total = total * factors.old + sums[std::int64_t{run} * a.head_dim + d] * factors.run;
    }
    out[d] = total / softmax.denominator;
  }
}

template <class Kv, int kHeads, int kTokens>
void LaunchAttend(const Arguments& a, std::int64_t kv_heads, Stream& stream) {
  Launch(stream, Attend<Kv, kHeads, kTokens>,
         dim3(Extent(DivideUp(a.tokens, kTokens)), Extent(kv_heads), Extent(a.runs)), kThreads,
         sizeof(Shared<kHeads, kTokens>), a);
}

/// From this many tokens on, tokens share loads: before, all blocks are needed to keep the GPU
/// busy, and the tokens are most likely of different sequences.
constexpr int kManyTokens = 65;

template <class Kv, int kHeads>
void ChooseTokens(const Arguments& a, std::int64_t kv_heads, Stream& stream) {
  if (a.tokens < kManyTokens) {
    LaunchAttend<Kv, kHeads, 1>(a, kv_heads, stream);
  } else {
    LaunchAttend<Kv, kHeads, kHeads <= 6 ? 4 : 2>(a, kv_heads, stream);
  }
}

template <class Kv>
void ChooseHeads(const Arguments& a, std::int64_t kv_heads, Stream& stream) {
  const std::int64_t sharing = DivideUp(a.heads, kv_heads);
  if (sharing <= 1) {
    ChooseTokens<Kv, 1>(a, kv_heads, stream);
  } else if (sharing <= 4) {
    ChooseTokens<Kv, 4>(a, kv_heads, stream);
  } else if (sharing <= 6) {
    ChooseTokens<Kv, 6>(a, kv_heads, stream);
  } else {
    ChooseTokens<Kv, 8>(a, kv_heads, stream);
  }
}

}  // namespace

void RunOnGpu(const PagedAttention& op, Stream& stream) {
  const KvLayer& layer = op.pages;
  CHECK(layer.device == Device::kCuda);
  const std::int64_t tokens = op.q.size(0);
  const std::int64_t heads = op.kv_heads.size(0);
  const std::int64_t runs = AttentionRuns(op.places.page_table.size(1) * kPageTokens);
  auto* const softmaxes = reinterpret_cast<float2*>(op.workspace.raw());
  const Arguments a{.out = DeviceData<float>(op.out),
                    .out_stride = op.out.row_stride(),
                    .q = DeviceData<float>(op.q),
                    .q_stride = op.q.row_stride(),
                    .tokens = static_cast<int>(Extent(tokens)),
                    .pool = layer.data,
                    .page_bytes = layer.PageBytes(),
                    .head_bytes = layer.HeadBytes(),
                    .num_pages = layer.num_pages,
                    .head_dim = static_cast<int>(layer.head_dim),
                    .positions = DeviceData<std::int32_t>(op.places.positions),
                    .sequences = DeviceData<std::int32_t>(op.places.sequences),
                    .page_table = DeviceData<std::int32_t>(op.places.page_table),
                    .page_table_stride = op.places.page_table.row_stride(),
                    .num_sequences = static_cast<int>(Extent(op.places.page_table.size(0))),
                    .max_pages = static_cast<int>(Extent(op.places.page_table.size(1))),
                    .kv_heads = DeviceData<std::int32_t>(op.kv_heads),
                    .heads = static_cast<int>(Extent(heads)),
                    .scale = op.scale,
                    .soft_cap = op.soft_cap,
                    .runs = static_cast<int>(Extent(runs)),
                    .softmaxes = softmaxes,
                    .sums = reinterpret_cast<float*>(softmaxes + tokens * heads * runs)};
  switch (layer.type) {
    case KvType::kF32:
      ChooseHeads<F32>(a, layer.heads, stream);
      break;
    case KvType::kInt16:
      ChooseHeads<Int16>(a, layer.heads, stream);
      break;
    case KvType::kInt8:
      ChooseHeads<Int8>(a, layer.heads, stream);
      break;
  }
  if (runs > 1) {
    Launch(stream, CombineRuns, dim3(Extent(tokens), Extent(heads)), kThreads, 0, a);
  }
}

}  // namespace jubal

#include <algorithm>
#include <limits>

#include "kernels/paged_attention.h"
#include "tests/kernels/cuda/gpu_test.h"
#include "tests/kernels/random_matrix.h"

namespace jubal {
namespace {

class StoreKvGpuTest : public GpuTest {};
INSTANTIATE_GPU_TEST(StoreKvGpuTest);

// Breaks: the cache of a GPU holds other integers or scales than a CPU's, or in other places; what
// belongs to other tokens changes.
TEST_P(StoreKvGpuTest, WritesTheBytesOfTheSpecification) {
  constexpr std::int64_t kHeads = 2;
  const Ints page_table({3, 3}, {4, -1, -1, 0, 3, -1, 6, 2, 1});
  // Two rows are the same: batches are filled up by repeating one.
  const Ints all_positions({8}, {0, 31, 32, 63, 64, 95, 5, 32});
  const Ints all_sequences({8}, {0, 1, 1, 2, 2, 2, 0, 1});
  for (const KvType type : {KvType::kF32, KvType::kInt16, KvType::kInt8}) {
    for (const std::int64_t head_dim : {1, 5, 20, 128}) {
      for (const std::int64_t tokens : {0, 1, 8}) {
        const std::int64_t columns = kHeads * head_dim;
        Floats k = RandomFloats({tokens, columns + 3}, 1, 3.0f);
        Floats v = RandomFloats({tokens, columns + 2}, 2);
        if (tokens == 8) {
          std::copy_n(k.values().begin() + 2 * (columns + 3), columns + 3,
                      k.values().begin() + 7 * (columns + 3));
          std::copy_n(v.values().begin() + 2 * (columns + 2), columns + 2,
                      v.values().begin() + 7 * (columns + 2));
          std::fill_n(v.values().begin(), columns, 0.0f);
          k[columns + 3] = std::numeric_limits<float>::infinity();
          v[columns + 2] = std::numeric_limits<float>::quiet_NaN();
        }
        KvLayer layer{.num_pages = 7, .heads = kHeads, .head_dim = head_dim, .type = type};
        const std::int64_t bytes = layer.num_pages * layer.PageBytes();
        const AlignedBytes expected(bytes);
        std::fill_n(expected.data(), bytes, std::byte{0xff});
        layer.data = expected.data();
        const auto positions = all_positions.view().Rows(0, tokens);
        const auto sequences = all_sequences.view().Rows(0, tokens);
        RunSpecification(StoreKv{layer,
                                 k.view().Columns(2, columns),
                                 v.view().Columns(1, columns),
                                 {positions, sequences, page_table.view()}});

        const TensorView pages = Allocate(DType::kU8, {bytes});
        layer.data = pages.raw();
        layer.device = Device::kCuda;
        Launch(StoreKv{layer,
                       OnGpu(k).Columns(2, columns),
                       OnGpu(v).Columns(1, columns),
                       {OnGpu(all_positions).Rows(0, tokens), OnGpu(all_sequences).Rows(0, tokens),
                        OnGpu(page_table)}});
        const std::vector<std::uint8_t> there = ReadBack<std::uint8_t>(pages);
        EXPECT_EQ(std::memcmp(there.data(), expected.data(), there.size()), 0)
            << "type " << static_cast<int>(type) << " head_dim " << head_dim << " tokens "
            << tokens;
      }
    }
  }
}

}  // namespace
}  // namespace jubal

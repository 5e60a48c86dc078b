#include "tests/kernels/emulated_gpu/ptx.h"

#include <cstring>

namespace jubal {
namespace {

/// What a lane brings to a product of fragments. D is in place.
template <class T>
struct Fragments {
  T d[4];
  std::uint32_t a[4];
  std::uint32_t b[2];
};

using FourFloats = float __attribute__((vector_size(16)));

/// A product of fragments, unpacked: D += A · B. Floats hold bytes, and sums of 32 products of
/// them, exactly.
template <int kK>
struct Tiles {
  alignas(16) float d[16][8];
  float a[16][kK];
  alignas(16) float b[kK][8];

  void Multiply() {
    for (int row = 0; row < 16; row += 2) {
      FourFloats sums[2][2];
      std::memcpy(sums, d[row], sizeof(sums));
      for (int k = 0; k < kK; ++k) {
        FourFloats of_b[2];
        std::memcpy(of_b, b[k], sizeof(of_b));
        sums[0][0] += a[row][k] * of_b[0];
        sums[0][1] += a[row][k] * of_b[1];
        sums[1][0] += a[row + 1][k] * of_b[0];
        sums[1][1] += a[row + 1][k] * of_b[1];
      }
      std::memcpy(d[row], sums, sizeof(sums));
    }
  }
};

float UnpackInt8(std::uint32_t word, int i) { return static_cast<std::int8_t>(word >> (8 * i)); }
float UnpackBf16(std::uint32_t word, int i) {
  return __builtin_bit_cast(float, i == 0 ? word << 16 : word & 0xffff0000u);
}

/// The product of the warp's fragments, whose words hold `kInWord` elements. What D was comes and
/// goes through from_d(d) and to_d(sum, d).
template <class T, int kInWord, float (*kUnpack)(std::uint32_t, int), class From, class To>
void MultiplyFragments(WarpValues& values, const From& from_d, const To& to_d) {
  Fragments<T> lanes[kLanes];
  Tiles<8 * kInWord> tiles;
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(&lanes[lane], values[lane], sizeof(Fragments<T>));
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      tiles.d[g + i / 2 * 8][2 * t + i % 2] = from_d(lanes[lane].d[i]);
      for (int j = 0; j < kInWord; ++j) {
        tiles.a[g + i % 2 * 8][(t + i / 2 * 4) * kInWord + j] = kUnpack(lanes[lane].a[i], j);
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < kInWord; ++j) {
        tiles.b[(t + i * 4) * kInWord + j][g] = kUnpack(lanes[lane].b[i], j);
      }
    }
  }
  tiles.Multiply();
  for (int lane = 0; lane < 32; ++lane) {
    T d[4];
    for (int i = 0; i < 4; ++i) {
      d[i] = to_d(tiles.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2], lanes[lane].d[i]);
    }
    std::memcpy(values[lane], d, sizeof(d));
  }
}

/// Meets the warp, of which the last multiplies for all.
template <class T>
void Multiply(T (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              void (*multiply)(WarpValues&)) {
  Fragments<T> mine;
  std::memcpy(mine.d, d, sizeof(d));
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const WarpValues& all = MeetWarp(&mine, sizeof(mine), multiply);
  std::memcpy(d, all[ThisLane()], sizeof(d));
}

}  // namespace

void MmaInt8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  Multiply(d, a, b, [](WarpValues& values) {
    MultiplyFragments<std::int32_t, 4, UnpackInt8>(
        values, [](std::int32_t) { return 0.0f; },
        [](float sum, std::int32_t before) {
          return static_cast<std::int32_t>(static_cast<std::uint32_t>(before) +
                                           static_cast<std::uint32_t>(static_cast<int>(sum)));
        });
  });
}

void MmaBf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  Multiply(d, a, b, [](WarpValues& values) {
    MultiplyFragments<float, 2, UnpackBf16>(
        values, [](float before) { return before; }, [](float sum, float) { return sum; });
  });
}

}  // namespace jubal

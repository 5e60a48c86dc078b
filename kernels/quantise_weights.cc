#include "kernels/quantise_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/check.h"
#include "kernels/float_math.h"

namespace jubal {
namespace {

constexpr std::int64_t kTileRows = 64;  // of a group that is read more than once, or not at once

// Where int4 tries to put a group's value of largest magnitude: a level beyond −8 or 7 is cut off
// there, and the others are finer for it.
constexpr std::array kInt4Levels{-8.0f, -8.5f, -9.0f, -9.5f, 7.0f};

using Columns = std::array<float, kBlockColumns>;

float FromBf16(const std::byte* source) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, source, sizeof bits);
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

std::uint16_t ToBf16(float value) {
  constexpr std::uint16_t kInfinity = 0x7f80;
  constexpr std::uint16_t kSign = 0x8000;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto rounded = static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  return (rounded & ~kSign) == kInfinity ? static_cast<std::uint16_t>(rounded - 1) : rounded;
}

/// To the nearest integer, ties to even. |value| < 2^22.
[[gnu::always_inline]] inline float RoundToInteger(float value) {
  constexpr float kRounder = 12582912.0f;  // 1.5 · 2²³
  return (value + kRounder) - kRounder;
}

float Widen(const std::byte* source, WeightType type) {
  switch (type) {
    case WeightType::kF32: {
      float value = 0.0f;
      std::memcpy(&value, source, sizeof value);
      return value;
    }
    case WeightType::kBf16:
      return FromBf16(source);
    default:
      return static_cast<float>(static_cast<std::int8_t>(*source));
  }
}

/// The values of a few rows and up to 64 columns of the source, [row][64], zeros beyond the last.
template <WeightType kType>
void LoadTile(const StoredMatrix& source, Range rows, Range columns, float* tile) {
  constexpr std::int64_t kBytes =
      kType == WeightType::kInt8 ? 1 : 4 / (kType == WeightType::kF32 ? 1 : 2);
  const UnpackedMatrix& matrix = source.matrix;
  std::fill_n(tile, rows.size() * kBlockColumns, 0.0f);
  if (matrix.output_major) {
    for (std::int64_t c = 0; c < columns.size(); ++c) {
      const std::byte* from = matrix.data + ((columns.begin + c) * source.k + rows.begin) * kBytes;
      for (std::int64_t r = 0; r < rows.size(); ++r) {
        tile[r * kBlockColumns + c] = Widen(from + r * kBytes, kType);
      }
    }
  } else {
    for (std::int64_t r = 0; r < rows.size(); ++r) {
      const std::byte* from = matrix.data + ((rows.begin + r) * source.n + columns.begin) * kBytes;
      for (std::int64_t c = 0; c < columns.size(); ++c) {
        tile[r * kBlockColumns + c] = Widen(from + c * kBytes, kType);
      }
    }
  }
  if constexpr (kType == WeightType::kInt8) {
    for (std::int64_t r = 0; r < rows.size(); ++r) {
      const std::int64_t group = (rows.begin + r) / source.group_rows;
      const std::byte* scales = matrix.scales + (group * source.n + columns.begin) * 2;
      for (std::int64_t c = 0; c < columns.size(); ++c) {
        tile[r * kBlockColumns + c] *= FromBf16(scales + c * 2);
      }
    }
  }
}

void Load(const StoredMatrix& source, Range rows, Range columns, float* tile) {
  switch (source.type) {
    case WeightType::kF32:
      return LoadTile<WeightType::kF32>(source, rows, columns, tile);
    case WeightType::kBf16:
      return LoadTile<WeightType::kBf16>(source, rows, columns, tile);
    default:
      return LoadTile<WeightType::kInt8>(source, rows, columns, tile);
  }
}

/// The value of largest magnitude of each column so far; the first of equals.
void FindLargest(const float* tile, std::int64_t rows, Columns& largest) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < kBlockColumns; ++c) {
      const float value = tile[r * kBlockColumns + c];
      largest[c] = Select(std::fabs(value) > std::fabs(largest[c]), value, largest[c]);
    }
  }
}

/// largest / level, as it will be stored; of zeros +0.
Columns ScalesOf(const Columns& largest, float level) {
  Columns scales;
  for (std::size_t c = 0; c < scales.size(); ++c) {
    scales[c] = std::bit_cast<float>(std::uint32_t{ToBf16(largest[c] / level + 0.0f)} << 16);
  }
  return scales;
}

/// What values are divided by: a column of zeros has no scale.
Columns DivisorsOf(const Columns& scales) {
  Columns divisors;
  for (std::size_t c = 0; c < scales.size(); ++c) divisors[c] = scales[c] == 0 ? 1.0f : scales[c];
  return divisors;
}

[[gnu::always_inline]] inline float Level(float value, float divisor, float low, float high) {
  float level = value / divisor;
  level = Select(level < low, low, level);
  return RoundToInteger(Select(level > high, high, level));
}

/// Σ (w − q · s)² of each column, in ascending k.
Columns ErrorsOf(const float* tile, std::int64_t rows, const Columns& scales) {
  const Columns divisors = DivisorsOf(scales);
  Columns errors{};
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < kBlockColumns; ++c) {
      const float value = tile[r * kBlockColumns + c];
      const float error = value - Level(value, divisors[c], -8.0f, 7.0f) * scales[c];
      errors[c] += error * error;
    }
  }
  return errors;
}

Columns BestInt4Scales(const float* tile, std::int64_t rows, const Columns& largest) {
  Columns best{};
  Columns least;
  least.fill(std::numeric_limits<float>::infinity());
  for (const float level : kInt4Levels) {
    const Columns scales = ScalesOf(largest, level);
    const Columns errors = ErrorsOf(tile, rows, scales);
    for (std::size_t c = 0; c < best.size(); ++c) {
      if (errors[c] < least[c]) {
        least[c] = errors[c];
        best[c] = scales[c];
      }
    }
  }
  return best;
}

/// One group, or for bf16 a few rows, of one block of columns.
struct Job {
  Range rows;
  Range columns;               // of the source
  std::int64_t to_column = 0;  // of the result
  std::int64_t to_columns = 0;
};

void RoundToBf16(const StoredMatrix& source, const Job& job, float* tile, std::byte* data) {
  Load(source, job.rows, job.columns, tile);
  for (std::int64_t r = 0; r < job.rows.size(); ++r) {
    std::byte* to = data + ((job.rows.begin + r) * job.to_columns + job.to_column) * 2;
    for (std::int64_t c = 0; c < job.columns.size(); ++c) {
      const std::uint16_t rounded = ToBf16(tile[r * kBlockColumns + c]);
      std::memcpy(to + c * 2, &rounded, 2);
    }
  }
}

void RoundGroup(const StoredMatrix& source, const Job& job, WeightType type, float* tile,
                std::byte* data, std::byte* scales_out) {
  const bool int4 = type == WeightType::kInt4;
  const float low = int4 ? -8.0f : -127.0f;
  const float high = int4 ? 7.0f : 127.0f;
  const std::int64_t tile_rows = int4 ? job.rows.size() : kTileRows;
  const auto for_each_tile = [&](auto visit) {
    for (std::int64_t row = job.rows.begin; row < job.rows.end; row += tile_rows) {
      const Range rows{row, std::min(job.rows.end, row + tile_rows)};
      Load(source, rows, job.columns, tile);
      visit(rows);
    }
  };
  Columns largest{};
  for_each_tile([&](Range rows) { FindLargest(tile, rows.size(), largest); });
  Columns scales;
  if (int4) {
    scales = BestInt4Scales(tile, job.rows.size(), largest);
  } else {
    for (float& value : largest) value = std::fabs(value);
    scales = ScalesOf(largest, 127.0f);
  }
  const Columns divisors = DivisorsOf(scales);
  for_each_tile([&](Range rows) {
    for (std::int64_t r = 0; r < rows.size(); ++r) {
      Columns levels;
      for (std::int64_t c = 0; c < kBlockColumns; ++c) {
        levels[c] = Level(tile[r * kBlockColumns + c], divisors[c], low, high);
      }
      std::byte* to = data + (rows.begin + r) * job.to_columns + job.to_column;
      for (std::int64_t c = 0; c < job.columns.size(); ++c) {
        to[c] = static_cast<std::byte>(static_cast<std::int8_t>(levels[c]));
      }
    }
  });
  for (std::int64_t c = 0; c < job.columns.size(); ++c) {
    const std::uint16_t bits = ToBf16(scales[c]);
    std::memcpy(scales_out + c * 2, &bits, 2);
  }
}

}  // namespace

void QuantiseWeights(const StoredMatrix& source, Range columns, WeightType type,
                     std::int64_t group_rows, std::byte* data, std::byte* scales) {
  CHECK(source.type != WeightType::kInt4 && type != WeightType::kF32);
  CHECK(source.type != WeightType::kInt8 || source.group_rows > 0);
  CHECK(columns.begin >= 0 && columns.end <= source.n);
  CHECK(!HasScales(type) || (group_rows > 0 && scales != nullptr));
  CHECK(type != WeightType::kInt4 || group_rows <= kMaxInt4GroupRows);
  const std::int64_t job_rows = HasScales(type) ? group_rows : kTileRows;
  const std::int64_t jobs = DivideUp(source.k, job_rows);
  const std::int64_t blocks = DivideUp(columns.size(), kBlockColumns);

#pragma omp parallel
  {
    std::vector<float> tile(
        static_cast<std::size_t>(std::max(kTileRows, kMaxInt4GroupRows) * kBlockColumns));
#pragma omp for collapse(2)
    for (std::int64_t i = 0; i < jobs; ++i) {
      for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t column = block * kBlockColumns;
        const Job job{.rows = {i * job_rows, std::min(source.k, (i + 1) * job_rows)},
                      .columns = {columns.begin + column,
                                  std::min(columns.end, columns.begin + column + kBlockColumns)},
                      .to_column = column,
                      .to_columns = columns.size()};
        if (HasScales(type)) {
          RoundGroup(source, job, type, tile.data(), data,
                     scales + (i * columns.size() + column) * 2);
        } else {
          RoundToBf16(source, job, tile.data(), data);
        }
      }
    }
  }
}

}  // namespace jubal

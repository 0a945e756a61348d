#include "codec/frequencies.h"

#include <algorithm>
#include <bit>

#include "base/errors.h"

namespace pyquant {
namespace {

constexpr int kFractionBits = 16;  // of a logarithm
constexpr int64_t kMaxWeight = 1 << 16;

int64_t weight_of(int v, int mantissa) {
  const int step = 1 << mantissa;
  if (v < step) return v;
  const int shift = (v >> mantissa) - 1;
  return shift > 16 ? kMaxWeight + 1 : static_cast<int64_t>(step + (v & (step - 1))) << shift;
}

// The v whose weight is nearest, the lower one of two.
int nearest(int64_t weight, int mantissa) {
  const int exponent = std::max(0, static_cast<int>(std::bit_width(static_cast<uint64_t>(weight))) - 1 - mantissa);
  const int below = (exponent << mantissa) + static_cast<int>(weight >> exponent);
  return weight - weight_of(below, mantissa) > weight_of(below + 1, mantissa) - weight ? below + 1 : below;
}

// floor(log2(x) * 2^kFractionBits): a bit of the fraction for each squaring.
int64_t fixed_log2(uint32_t x) {
  const int whole = std::bit_width(x) - 1;
  uint64_t y = static_cast<uint64_t>(x) << (31 - whole);  // 1 to 2, times 2^31
  int64_t result = whole;
  for (int bit = 0; bit < kFractionBits; ++bit) {
    y = (y * y) >> 31;
    const bool carry = (y >> 32) != 0;
    result = 2 * result + carry;
    y >>= carry;
  }
  return result;
}

// Bits of the stream, table included, in units of 2^-kFractionBits.
int64_t cost(const LevelTable& table, std::span<const int64_t> counts, int precision) {
  const std::vector<uint32_t> starts = table.starts(precision);
  int64_t bits = static_cast<int64_t>(table.levels.size()) * table.level_bits << kFractionBits;
  for (size_t i = 0; i < table.levels.size(); ++i) {
    const int64_t count = counts[table.first + i];
    if (count > 0) bits += count * ((int64_t{precision} << kFractionBits) - fixed_log2(starts[i + 1] - starts[i]));
  }
  return bits;
}

}  // namespace

std::vector<uint32_t> LevelTable::starts(int precision) const {
  std::vector<int64_t> weights(levels.size());
  int64_t sum = 0, occur = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    if (levels[i] == 0) continue;
    weights[i] = weight_of(lowest + levels[i] - 1, mantissa);
    if (weights[i] > kMaxWeight) throw Error("a level of its table is too high");
    sum += weights[i];
    ++occur;
  }
  if (occur == 0) throw Error("its table has no symbol that occurs");
  const bool equal = sum == 0;
  const int64_t rest = (int64_t{1} << precision) - occur, whole = equal ? occur : sum;
  std::vector<uint32_t> result(levels.size() + 1);
  int64_t before = 0, seen = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    if (levels[i] > 0) {
      before += equal ? 1 : weights[i];
      ++seen;
    }
    result[i + 1] = static_cast<uint32_t>(seen + before * rest / whole);
  }
  return result;
}

LevelTable fit_table(std::span<const int64_t> counts, int precision) {
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  const auto occurs = [](int64_t count) { return count > 0; };
  const auto begin = std::find_if(counts.begin(), counts.end(), occurs);
  const auto end = std::find_if(counts.rbegin(), counts.rend(), occurs).base();
  LevelTable best;
  int64_t least = -1;
  for (int mantissa = 0; mantissa <= kMaxMantissaBits; ++mantissa) {
    LevelTable table{.first = static_cast<int32_t>(begin - counts.begin()), .mantissa = mantissa, .levels = {}};
    std::vector<int> values(end - begin, -1);  // -1: does not occur
    int lowest = 255, highest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t count = begin[i];
      if (count == 0) continue;
      // Each symbol that occurs has 1 of 2^precision for certain; the weight is what it gets besides.
      const int64_t frequency = ((count << precision) + total / 2) / total;
      values[i] = nearest(std::clamp(frequency - 1, int64_t{0}, kMaxWeight), mantissa);
      lowest = std::min(lowest, values[i]);
      highest = std::max(highest, values[i]);
    }
    table.lowest = lowest;
    table.level_bits = std::bit_width(static_cast<unsigned>(highest - lowest + 1));
    for (const int value : values) table.levels.push_back(static_cast<uint16_t>(value < 0 ? 0 : value - lowest + 1));
    const int64_t bits = cost(table, counts, precision);
    if (least < 0 || bits < least) {
      least = bits;
      best = std::move(table);
    }
  }
  return best;
}

}  // namespace pyquant

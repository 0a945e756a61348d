// The static model of an entropy-coded stream: a level of a few bits for each symbol, from which frequencies follow.
//
// A level is a small floating-point number: steps between high frequencies are wide, which costs next to nothing where
// log2 of a frequency counts, and keeps the table short. All arithmetic is in integers, so that every machine makes the
// same frequencies of the same levels.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pyquant {

constexpr int kMaxMantissaBits = 4;
constexpr int kMaxLevelBits = 8;

// Frequencies of the symbols of a stream add up to 2^precision: 16 steps or more for a symbol of mean frequency, up to
// 12 bits.
constexpr int precision_for(int width) { return width <= 8 ? 12 : width >= 12 ? 16 : width + 4; }

// The levels of the symbols first .. first + levels.size() - 1; all others do not occur.
//
// Level 0 is a symbol that does not occur. Level l >= 1 has the weight w(lowest + l - 1), where
//   w(v) = v                                                   for v < 2^mantissa
//   w(v) = (2^mantissa + v mod 2^mantissa) << (v / 2^mantissa - 1)   above.
// Where all weights are 0, each counts as 1. With u symbols that occur, P = 2^precision, and W the sum of all weights,
// the frequencies of the symbols up to and with s add up to
//   (how many of them occur) + floor((the sum of their weights) * (P - u) / W).
struct LevelTable {
  int32_t first = 0;
  int mantissa = 0;    // bits, 0 to kMaxMantissaBits
  int lowest = 0;      // 0 to 255
  int level_bits = 1;  // 1 to kMaxLevelBits
  std::vector<uint16_t> levels;

  // starts[i]: the sum of the frequencies of all symbols before first + i; one more for the end, which is 2^precision.
  // Throws Error where no symbol occurs, or a weight is above 2^16.
  std::vector<uint32_t> starts(int precision) const;
};

// The model with which a stream of symbols that occur counts[symbol] times, at least one of them, is the shortest.
LevelTable fit_table(std::span<const int64_t> counts, int precision);

}  // namespace pyquant

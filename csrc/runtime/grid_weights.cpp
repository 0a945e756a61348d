#include "runtime/grid_weights.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <vector>

#include "codec/packing.h"

namespace pyquant {
namespace {

constexpr int kMaxGridBits = 8;
constexpr int kMostWeight = 127;
constexpr int64_t kMaxPatterns = 256;

// The codes of `count` weights, unpacked.
std::vector<uint16_t> codes_of(const Grids& grids, int64_t count, const Weight& weight) {
  const auto outputs = static_cast<size_t>(weight.outputs);
  if (grids.bits < 1 || grids.bits > kMaxGridBits ||
      static_cast<int64_t>(grids.packed.size()) != packed_bytes(count, grids.bits) || grids.step.size() != outputs ||
      grids.zero.size() != outputs) {
    throw Error("a weight on grids: its codes, steps and zeros do not fit " + std::to_string(count) + " weights of " +
                std::to_string(grids.bits) + " bits");
  }
  std::vector<uint16_t> codes(count);
  unpack_codes(grids.packed, grids.bits, codes);
  return codes;
}

// The largest unit, in half steps, of which all of these half steps are multiples that a byte holds: 2, 1, or 0: none.
int unit_of(std::span<const int16_t> halves) {
  int most = 0;
  bool all_even = true;
  for (const int16_t half : halves) {
    most = std::max(most, std::abs(static_cast<int>(half)));
    all_even = all_even && half % 2 == 0;
  }
  const int unit = all_even ? 2 : 1;
  return most <= unit * kMostWeight ? unit : 0;
}

// Fill in a weight of which each number is so many half steps of its output: halves [O, D].
void fill(const std::vector<int16_t>& halves, std::span<const float> step, Weight& weight) {
  const int64_t depth = weight.depth();
  const auto size = static_cast<int64_t>(halves.size());
  std::vector<int> units(weight.outputs);
  for (int64_t o = 0; o < weight.outputs; ++o) units[o] = unit_of(std::span(halves).subspan(o * depth, depth));
  if (std::find(units.begin(), units.end(), 0) != units.end()) {
    weight.dense = AlignedBuffer<float>(size);
    for (int64_t i = 0; i < size; ++i) weight.dense[i] = static_cast<float>(halves[i]) * (step[i / depth] * 0.5f);
    return;
  }
  weight.bytes = AlignedBuffer<int8_t>(size);
  weight.units.resize(weight.outputs);
  for (int64_t i = 0; i < size; ++i) weight.bytes[i] = static_cast<int8_t>(halves[i] / units[i / depth]);
  for (int64_t o = 0; o < weight.outputs; ++o) weight.units[o] = units[o] == 2 ? step[o] : step[o] * 0.5f;
}

int16_t halves_of(uint16_t code, uint8_t zero) { return static_cast<int16_t>(2 * code - zero); }

}  // namespace

void decode_grids(const Grids& grids, Weight& weight) {
  const int64_t depth = weight.depth();
  const int64_t size = checked_multiply(weight.outputs, depth);
  const std::vector<uint16_t> codes = codes_of(grids, size, weight);
  std::vector<int16_t> halves(size);
  for (int64_t i = 0; i < size; ++i) halves[i] = halves_of(codes[i], grids.zero[i / depth]);
  fill(halves, grids.step, weight);
}

void decode_sparse_grids(const Mask& mask, const Grids& grids, Weight& weight) {
  const int64_t taps = weight.kernel_rows * weight.kernel_columns;
  const int64_t size = checked_multiply(weight.outputs, weight.depth());
  const int64_t unit = mask.unit;
  const int64_t patterns = unit > 0 ? static_cast<int64_t>(mask.patterns.size()) / unit : 0;
  if (patterns < 2 || patterns > kMaxPatterns || patterns * unit != static_cast<int64_t>(mask.patterns.size()) ||
      weight.channels % unit != 0) {
    throw Error("a sparse weight: its patterns do not fit " + std::to_string(weight.channels) + " input channels");
  }
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(patterns - 1)));
  std::vector<uint16_t> units(size / unit);
  if (static_cast<int64_t>(mask.packed.size()) != packed_bytes(static_cast<int64_t>(units.size()), bits)) {
    throw Error("a sparse weight: its mask does not fit " + std::to_string(size) + " weights");
  }
  unpack_codes(mask.packed, bits, units);
  std::vector<int64_t> kept_by(patterns);
  for (int64_t i = 0; i < patterns * unit; ++i) kept_by[i / unit] += mask.patterns[i] != 0;
  int64_t kept = 0;
  for (const uint16_t pattern : units) {
    if (pattern >= patterns) throw Error("a sparse weight: its mask holds a pattern that does not exist");
    kept += kept_by[pattern];
  }
  const std::vector<uint16_t> codes = codes_of(grids, kept, weight);

  std::vector<int16_t> halves(size, 0);
  size_t next_unit = 0, next_code = 0;
  for (int64_t o = 0; o < weight.outputs; ++o) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t channel = 0; channel < weight.channels; channel += unit) {
        const uint8_t* const pattern = mask.patterns.data() + units[next_unit++] * unit;
        for (int64_t i = 0; i < unit; ++i) {
          if (pattern[i] == 0) continue;
          halves[(o * weight.channels + channel + i) * taps + tap] = halves_of(codes[next_code++], grids.zero[o]);
        }
      }
    }
  }
  fill(halves, grids.step, weight);
}

}  // namespace pyquant

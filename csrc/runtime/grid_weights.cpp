#include "runtime/grid_weights.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "codec/packing.h"

namespace pyquant {
namespace {

constexpr int kMaxGridBits = 8;
constexpr int kMostByte = 127;

}  // namespace

void decode_grids(std::span<const uint8_t> packed, int bits, std::span<const float> step, std::span<const uint8_t> zero,
                  Weight& weight) {
  const int64_t depth = weight.depth();
  const int64_t size = checked_multiply(weight.outputs, depth);
  const auto outputs = static_cast<size_t>(weight.outputs);
  if (bits < 1 || bits > kMaxGridBits || static_cast<int64_t>(packed.size()) != packed_bytes(size, bits) ||
      step.size() != outputs || zero.size() != outputs) {
    throw Error("a weight on grids: its codes, steps and zeros do not fit " + std::to_string(size) + " weights of " +
                std::to_string(bits) + " bits");
  }
  std::vector<uint16_t> codes(size);
  unpack_codes(packed, bits, codes);
  weight.dense = AlignedBuffer<float>(size);
  weight.units.assign(outputs, 0.0f);
  for (int64_t o = 0; o < weight.outputs; ++o) {
    const float half = step[o] * 0.5f;
    int most = 0;
    bool all_even = true;
    for (int64_t i = o * depth; i < (o + 1) * depth; ++i) {
      const int halves = 2 * codes[i] - zero[o];
      weight.dense[i] = static_cast<float>(halves) * half;
      most = std::max(most, std::abs(halves));
      all_even = all_even && halves % 2 == 0;
    }
    if (most <= (all_even ? 2 * kMostByte : kMostByte)) weight.units[o] = all_even ? step[o] : half;
  }
}

}  // namespace pyquant

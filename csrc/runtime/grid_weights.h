// Weights on uniform grids, one for each output: unpacked into bytes, of which they are multiples.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/graph.h"

namespace pyquant {

// Codes [..] of `bits` (2 to 8) bits, as packing.h has them, and the grids [O] of the outputs that they belong to: a
// weight of output o is step[o] * (code - zero[o] / 2).
struct Grids {
  std::span<const uint8_t> packed;
  int bits;
  std::span<const float> step;
  std::span<const uint8_t> zero;
};

// Which weights are kept of each unit: so many neighbouring input channels of one tap of the kernel.
struct Mask {
  std::span<const uint8_t> packed;    // codes [O, kh, kw, C / unit], each < P, as packing.h has them
  std::span<const uint8_t> patterns;  // [P, unit]: 1 where the weight is kept, 0 where it is zero
  int64_t unit;
};

// Fill in the bytes and units of a weight whose other sizes are set, or where bytes do not hold it `dense`; there is a
// code for each of its weights. Throws Error where sizes do not fit.
void decode_grids(const Grids& grids, Weight& weight);

// The same of a weight of which there are codes for those that the mask keeps, in the mask's order.
void decode_sparse_grids(const Mask& mask, const Grids& grids, Weight& weight);

}  // namespace pyquant

// Weights on uniform grids, one for each output: decoded into dense ones, which know what they are multiples of.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/graph.h"

namespace pyquant {

// Fill in `dense` and `units` of a weight whose other sizes are set. A weight of output o is
// step[o] * (code - zero[o] / 2).
//   packed  codes [O, D] of `bits` (2 to 8) bits, as packing.h has them      step, zero  [O]
// Throws Error where sizes do not fit.
void decode_grids(std::span<const uint8_t> packed, int bits, std::span<const float> step, std::span<const uint8_t> zero,
                  Weight& weight);

}  // namespace pyquant

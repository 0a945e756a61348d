// Activation functions: clamps, which kernels fuse, and curves, which follow them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/kernels.h"

namespace pyquant {

enum class Activation { kNone, kRelu, kRelu6, kSilu, kHardswish, kHardsigmoid, kSigmoid };

// The activation that operation `op` is, if it is one.
std::optional<Activation> activation_of(const std::string& op);

// The clamp that applies an activation entirely, or a part of it that does nothing.
struct Clamp {
  float low;
  float high;
};
Clamp clamp_of(Activation activation);

// Whether the clamp leaves something to do, and doing it, in place.
bool has_curve(Activation activation);
void apply_curve(const CurveKernels& curves, Activation activation, float* values, int64_t count);

}  // namespace pyquant

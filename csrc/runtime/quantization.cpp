#include "runtime/quantization.h"

#include <algorithm>
#include <cmath>

namespace pyquant {

Quantization quantization_of(float low, float high) {
  low = std::min(low, 0.0f);
  high = std::max(high, 0.0f);
  const float scale = (high - low) / 255.0f;
  if (!(scale > 0.0f) || !std::isfinite(scale)) return {};
  return {.scale = scale, .zero = static_cast<int32_t>(std::clamp(std::nearbyint(-low / scale), 0.0f, 255.0f))};
}

}  // namespace pyquant

// Bilinear interpolation along one axis, with PyTorch's rule for source positions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyquant {

// The two source pixels of an output pixel along one axis, and the weight of the second.
struct Source {
  int64_t first;
  int64_t second;
  float weight;
};

// The pixel, of `in`, that a position is in or behind. Positions may be larger than any integer.
inline int64_t pixel_at(float position, int64_t in) {
  return position < static_cast<float>(in - 1) ? static_cast<int64_t>(position) : in - 1;
}

// The sources, among `in` pixels, of an output pixel whose position among them is this. Positions are computed in fp32,
// as PyTorch has them: doing otherwise could pick another pixel where one is nearly whole.
inline Source source_at(float position, int64_t in) {
  const int64_t first = pixel_at(position, in);
  const float weight = std::clamp(position - static_cast<float>(first), 0.0f, 1.0f);
  return {first, std::min(first + 1, in - 1), weight};
}

// The position of output pixel `i` where corners are not aligned: `step` input pixels lie between two outputs.
inline float position_of(int64_t i, float step) { return std::max((static_cast<float>(i) + 0.5f) * step - 0.5f, 0.0f); }

}  // namespace pyquant

#include "runtime/quad_rests.h"

#include <algorithm>

namespace pyquant {
namespace {

int32_t weight_of(uint32_t quad, int64_t i) { return static_cast<int8_t>(quad >> (8 * i) & 0xff); }

uint32_t byte_at(int32_t weight, int64_t i) { return static_cast<uint32_t>(weight & 0xff) << (8 * i); }

// What has to be added to the fitting quad.
uint32_t rest_of(uint32_t quad) {
  const uint32_t fitting = fitting_quad(quad);
  uint32_t rest = 0;
  for (int64_t i = 0; i < kQuad; ++i) rest |= byte_at(weight_of(quad, i) - weight_of(fitting, i), i);
  return rest;
}

}  // namespace

bool fits(uint32_t quad) {
  for (int64_t i = 0; i < kQuad; i += 2) {
    const int32_t pair = weight_of(quad, i) + weight_of(quad, i + 1);
    if (pair < -kMostPair || pair > kMostPair) return false;
  }
  return true;
}

uint32_t fitting_quad(uint32_t quad) {
  uint32_t fitting = 0;
  for (int64_t i = 0; i < kQuad; i += 2) {
    const int32_t first = weight_of(quad, i);
    const int32_t second = std::clamp(weight_of(quad, i + 1), -kMostPair - first, kMostPair - first);
    fitting |= byte_at(first, i) | byte_at(second, i + 1);
  }
  return fitting;
}

void QuadRests::add_output(const std::vector<uint32_t>& quads, const std::vector<int32_t>& at) {
  for (size_t k = 0; k < quads.size(); ++k) {
    if (fits(quads[k])) continue;
    rests_.push_back({.value = rest_of(quads[k]), .at = at[k]});
    places_.push_back(static_cast<int32_t>(k));
  }
  begin_.push_back(static_cast<int32_t>(rests_.size()));
}

void QuadRests::fit(int64_t output, int64_t outputs, uint32_t* quads, int64_t pitch) const {
  if (empty()) return;
  for (int64_t o = output; o < output + outputs; ++o, quads += pitch) {
    for (int32_t n = begin_[o]; n < begin_[o + 1]; ++n) quads[places_[n]] = fitting_quad(quads[places_[n]]);
  }
}

void QuadRests::add(const KernelTable& kernels, int64_t output, int64_t outputs, const uint32_t* panel, int32_t* sums,
                    int64_t pixels) const {
  if (empty() || begin_[output] == begin_[output + outputs]) return;
  kernels.sparse_sum8(rests_.data(), begin_.data() + output, panel, sums, outputs, pixels, true);
}

}  // namespace pyquant

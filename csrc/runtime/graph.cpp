#include "runtime/graph.h"

#include <algorithm>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

namespace {

template <typename T>
void count(const T* values, Weight& weight) {
  const int64_t taps = weight.kernel_rows * weight.kernel_columns;
  weight.nonzero = weight.nonzero_quads = 0;
  for (int64_t o = 0; o < weight.outputs; ++o) {
    for (int64_t channel = 0; channel < weight.channels; channel += kQuad) {
      const T* const first = values + (o * weight.channels + channel) * taps;
      const int64_t size = std::min(kQuad, weight.channels - channel) * taps;
      for (int64_t tap = 0; tap < taps; ++tap) {
        int64_t here = 0;
        for (int64_t i = tap; i < size; i += taps) here += first[i] != T{};
        weight.nonzero += here;
        weight.nonzero_quads += here > 0;
      }
    }
  }
}

}  // namespace

void Weight::count_zeros() {
  if (dense.empty()) {
    count(bytes.data(), *this);
  } else {
    count(dense.data(), *this);
  }
}

}  // namespace pyquant

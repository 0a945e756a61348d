#include "runtime/graph.h"

#include <algorithm>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

void Weight::count_zeros() {
  const int64_t taps = kernel_rows * kernel_columns;
  nonzero = nonzero_quads = 0;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t channel = 0; channel < channels; channel += kQuad) {
      const float* const first = dense.data() + (o * channels + channel) * taps;
      const int64_t size = std::min(kQuad, channels - channel) * taps;
      for (int64_t tap = 0; tap < taps; ++tap) {
        int64_t here = 0;
        for (int64_t i = tap; i < size; i += taps) here += first[i] != 0.0f;
        nonzero += here;
        nonzero_quads += here > 0;
      }
    }
  }
}

}  // namespace pyquant

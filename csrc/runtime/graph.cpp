#include "runtime/graph.h"

#include <algorithm>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

void Weight::count_zeros() {
  const int64_t taps = kernel_rows * kernel_columns;
  nonzero = dense.size() - std::count(dense.data(), dense.data() + dense.size(), 0.0f);
  nonzero_quads = 0;
  std::vector<uint8_t> any(taps);  // whether one of a quad's channels is not zero, by tap
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t channel = 0; channel < channels; channel += kQuad) {
      std::ranges::fill(any, 0);
      const float* const first = dense.data() + (o * channels + channel) * taps;
      const int64_t size = std::min(kQuad, channels - channel) * taps;
      for (int64_t i = 0; i < size; i += taps) {
        for (int64_t tap = 0; tap < taps; ++tap) any[tap] |= first[i + tap] != 0.0f;
      }
      nonzero_quads += std::ranges::count(any, 1);
    }
  }
}

}  // namespace pyquant

// Numbers times a factor, added to others: what errors and slopes are kept up with.
#pragma once

#include <cstdint>

namespace pyquant {

inline void add(float factor, const float* __restrict values, int64_t count, float* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += factor * values[i];
}

}  // namespace pyquant

// Size arithmetic that throws instead of wrapping around.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/errors.h"

namespace pyquant {

inline int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t result = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result)) {
    throw Error("a size of " + std::to_string(a) + " x " + std::to_string(b) + " is impossible");
  }
  return result;
}

inline int64_t checked_product(std::span<const int64_t> sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) result = checked_multiply(result, size);
  return result;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }

// An offset as kernels take it.
inline int32_t checked_offset(int64_t offset) {
  if (offset < 0 || offset > std::numeric_limits<int32_t>::max()) {
    throw Error("an array of more than " + std::to_string(offset) + " values is too large for the kernels");
  }
  return static_cast<int32_t>(offset);
}

// Where rows begin that are `pitch` apart.
inline std::vector<int32_t> rows_apart(int64_t rows, int64_t pitch) {
  std::vector<int32_t> result;
  for (int64_t row = 0; row < rows; ++row) result.push_back(checked_offset(row * pitch));
  return result;
}

}  // namespace pyquant

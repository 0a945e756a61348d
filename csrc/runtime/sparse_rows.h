// The weights of a layer that are not zero, as sparse_sum() reads them.
//
// A pass over the outputs adds what some rows of the panel give, so few that they stay in the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

// Whether leaving zeros out can be faster, so many weights, or quads of them, not being zero.
inline bool can_pay(int64_t nonzero, int64_t all) {
  constexpr double kMostNonzero = 0.6;
  return static_cast<double>(nonzero) <= kMostNonzero * static_cast<double>(all);
}

// Of a vector, in multiply-adds of the direct path: a weight that is not zero, and reading and writing the sums of an
// output in a pass.
constexpr double kSparseWeightCost = 1.8;
constexpr double kSparsePassCost = 3.0;

// Rows of a panel in a pass: 24 KiB of them.
constexpr int64_t kPassRows = 96;

template <typename T>
struct SparseRows {
  // Of weights, or quads of weights, [outputs, depth], whose inputs begin at these places [depth].
  SparseRows(const T* rows, int64_t outputs_, int64_t depth, const std::vector<int32_t>& at)
      : outputs(outputs_), passes(ceil_div(depth, kPassRows)) {
    weights.reserve(outputs * depth - std::count(rows, rows + outputs * depth, T{}));
    begin.reserve(passes * outputs + 1);
    for (int64_t pass = 0; pass < passes; ++pass) {
      for (int64_t o = 0; o < outputs; ++o) {
        begin.push_back(static_cast<int32_t>(weights.size()));
        for (int64_t k = pass * kPassRows; k < std::min(depth, (pass + 1) * kPassRows); ++k) {
          const T value = rows[o * depth + k];
          if (value != T{}) weights.push_back({.value = value, .at = at[k]});
        }
      }
    }
    begin.push_back(static_cast<int32_t>(weights.size()));
  }

  // As sparse_sum() takes it, for the outputs from this one on.
  const int32_t* begin_of(int64_t pass, int64_t output) const { return begin.data() + pass * outputs + output; }

  int64_t outputs = 0;
  int64_t passes = 0;
  std::vector<Sparse<T>> weights;
  std::vector<int32_t> begin;  // [passes * outputs + 1]: of each output's in a pass
};

}  // namespace pyquant

// The product of rows of weights with one vector of inputs: lanes are inputs, written once over an arithmetic `A`.
//
// A is that of vector_gemm.h, with `row` (weights from memory, one for each lane), `row_first` and `inputs_first` (the
// first n lanes, zeros behind) and `total` (of all lanes).
#pragma once

#include <cstdint>

namespace pyquant {

template <typename A>
struct VectorDot {
  using Weight = typename A::Weight;
  using Input = typename A::Input;
  using Value = typename A::Value;
  static constexpr int64_t kLanes = A::kLanes;

  // Several rows at a time share the loads of inputs, and their sums do not wait for each other.
  template <int64_t rows>
  static void some(const Weight* weights, int64_t pitch, const Input* inputs, int64_t depth, Value* out,
                   int64_t out_pitch) noexcept {
    typename A::Sums sums[rows];
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) sums[r] = A::zeros();
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      const typename A::Inputs x = A::inputs(inputs + k);
#pragma GCC unroll 8
      for (int64_t r = 0; r < rows; ++r) sums[r] = A::multiply_add(A::row(weights + r * pitch + k), x, sums[r]);
    }
    if (k < depth) {
      const typename A::Inputs x = A::inputs_first(inputs + k, depth - k);
#pragma GCC unroll 8
      for (int64_t r = 0; r < rows; ++r) {
        sums[r] = A::multiply_add(A::row_first(weights + r * pitch + k, depth - k), x, sums[r]);
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) out[r * out_pitch] = A::total(sums[r]);
  }

  static void rows(const Weight* weights, int64_t pitch, const Input* inputs, int64_t depth, Value* out,
                   int64_t out_pitch, int64_t count) noexcept {
    constexpr int64_t kTogether = 8;
    int64_t r = 0;
    for (; r + kTogether <= count; r += kTogether) {
      some<kTogether>(weights + r * pitch, pitch, inputs, depth, out + r * out_pitch, out_pitch);
    }
    for (; r < count; ++r) some<1>(weights + r * pitch, pitch, inputs, depth, out + r * out_pitch, out_pitch);
  }
};

}  // namespace pyquant

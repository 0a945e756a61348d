// Sums of a few rows of a panel, each times a weight: written once over an arithmetic `A`.
//
// A provides   what vector_gemm.h lists, of whole vectors, and sums (from memory), add (of two vectors of sums)
#pragma once

#include <cstdint>
#include <utility>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

template <typename A>
struct VectorSparse {
  using Weight = Sparse<typename A::Weight>;
  using Input = typename A::Input;
  using Value = typename A::Value;
  static constexpr int64_t kLanes = A::kLanes;
  static constexpr int64_t kVectors = kSparsePixels / kLanes;
  // So many sums do not wait for each other: where a row has fewer vectors, weights take turns.
  static constexpr int64_t kSums = 8;
  static constexpr int64_t kTurns = kVectors < kSums ? kSums / kVectors : 1;

  // The sums of an output stay in registers. A weight is broadcast for all vectors of its row, which are read where
  // they lie: what limits this are loads.
  template <int64_t vectors>
  static void registers(const Weight* weights, const int32_t* begin, const Input* panel, Value* sums, int64_t outputs,
                        bool accumulate) noexcept {
    for (int64_t o = 0; o < outputs; ++o, sums += kSparsePixels) {
      typename A::Sums sum[kTurns][vectors];
#pragma GCC unroll 8
      for (int64_t t = 0; t < kTurns; ++t) {
#pragma GCC unroll 16
        for (int64_t v = 0; v < vectors; ++v) {
          sum[t][v] = t == 0 && accumulate ? A::sums(sums + v * kLanes) : A::zeros();
        }
      }
      const auto add = [&](const Weight& weight, typename A::Sums(&to)[vectors]) __attribute__((always_inline)) {
        const Input* const row = panel + weight.at;
        const typename A::Weights weights_of_lanes = A::weights(&weight.value);
#pragma GCC unroll 16
        for (int64_t v = 0; v < vectors; ++v) {
          to[v] = A::multiply_add(weights_of_lanes, A::inputs(row + v * kLanes), to[v]);
        }
      };
      int64_t n = begin[o];
      const int64_t end = begin[o + 1];
      for (; n + kTurns <= end; n += kTurns) {
#pragma GCC unroll 8
        for (int64_t t = 0; t < kTurns; ++t) add(weights[n + t], sum[t]);
      }
      for (; n < end; ++n) add(weights[n], sum[0]);
#pragma GCC unroll 16
      for (int64_t v = 0; v < vectors; ++v) {
#pragma GCC unroll 8
        for (int64_t t = 1; t < kTurns; ++t) sum[0][v] = A::add(sum[0][v], sum[t][v]);
        A::store(sums + v * kLanes, sum[0][v]);
      }
    }
  }

  using RegistersFn = decltype(&registers<1>);

  template <int64_t... vectors>
  static RegistersFn registers_for(int64_t wanted, std::integer_sequence<int64_t, vectors...>) noexcept {
    static constexpr RegistersFn kWidths[] = {&registers<vectors + 1>...};
    return kWidths[wanted - 1];
  }

  static void sum(const Weight* weights, const int32_t* begin, const Input* panel, Value* sums, int64_t outputs,
                  int64_t pixels, bool accumulate) noexcept {
    constexpr auto kAll = std::make_integer_sequence<int64_t, kVectors>{};
    registers_for(ceil_div(pixels, kLanes), kAll)(weights, begin, panel, sums, outputs, accumulate);
  }
};

}  // namespace pyquant

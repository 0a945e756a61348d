// The product of weights, found in a codebook, with a panel: a register tile, written once over an arithmetic `A`.
//
// A provides   Weight, Input, Value   what a codebook, a panel and an output hold
//              Sums, HalfSums   a vector of kLanes sums, and one of half as many
//              Inputs, HalfInputs, Weights   as multiply_add() takes them
//              kRows, kVectors   the tile: kRows * kVectors sums, kVectors inputs and weights must fit the registers
//              zeros, half_zeros, inputs, half_inputs (from memory), weights (one weight or quad, for all lanes),
//              multiply_add(weights, inputs, sums) of both widths, store of both; for matrix_tile() all, half_all
//              (sums that are one value)
#pragma once

#include <cstdint>
#include <utility>

#include "base/prefetcher.h"
#include "base/sizes.h"

namespace pyquant {

template <typename A>
struct VectorGemm {
  using Weight = typename A::Weight;
  using Input = typename A::Input;
  using Value = typename A::Value;
  static constexpr int64_t kLanes = A::kLanes;

  // So many steps of a block whose dim the compiler does not know are written out; of a matrix twice as many, where so
  // many would mislead a prefetcher.
  static constexpr int64_t kSteps = 4;

  // The sums stay in registers for the whole depth. A step loads the inputs and broadcasts kRows weights, straight from
  // the codebook: they need no decoding. `fixed` is a dim known to the compiler, all of whose steps are written out (to
  // count them takes 8 % of the time), or 0. Of a matrix, it is so many of its steps, where those are not kSteps; its
  // weights lie `apart`. Where it `adds`, the sums of a row begin with start[r].
  template <int64_t halves, int64_t fixed, bool is_matrix, int64_t apart = 1, bool adds = false>
  static void registers(const uint16_t* at, const Weight* codebook, int64_t any_dim, int64_t blocks, const Input* panel,
                        const int32_t* rows, const Value* start, Value* out, int64_t out_pitch) noexcept {
    constexpr int64_t vectors = halves / 2;
    constexpr bool with_half = halves % 2 != 0;
    const int64_t dim = fixed > 0 && !is_matrix ? fixed : any_dim;
    // A constant number of turns, unrolled early: else the compiler keeps a copy of the sums in memory as well.
    typename A::Sums sums[A::kRows][vectors + 1];
    typename A::HalfSums half_sums[A::kRows];
#pragma GCC unroll 8
    for (int64_t r = 0; r < A::kRows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) {
        if constexpr (adds) {
          sums[r][v] = A::all(start[r]);
        } else {
          sums[r][v] = A::zeros();
        }
      }
      if constexpr (with_half && adds) half_sums[r] = A::half_all(start[r]);
      if constexpr (with_half && !adds) half_sums[r] = A::half_zeros();
    }
    const Weight* centroids[A::kRows];
    const auto multiply = [&](int64_t i) __attribute__((always_inline)) {
      const Input* const row = panel + rows[i];
      typename A::Inputs inputs[vectors + 1];
      typename A::HalfInputs half_inputs;
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) inputs[v] = A::inputs(row + v * kLanes);
      if constexpr (with_half) half_inputs = A::half_inputs(row + vectors * kLanes);
#pragma GCC unroll 8
      for (int64_t r = 0; r < A::kRows; ++r) {
        const typename A::Weights weights = A::weights(centroids[r] + i * apart);
#pragma GCC unroll 8
        for (int64_t v = 0; v < vectors; ++v) sums[r][v] = A::multiply_add(weights, inputs[v], sums[r][v]);
        if constexpr (with_half) half_sums[r] = A::multiply_add(weights, half_inputs, half_sums[r]);
      }
    };
    // No counter of blocks: codes and addresses take all of the other registers.
    for (const int32_t* const end = rows + blocks * dim; rows != end; rows += dim, at += is_matrix ? 0 : A::kRows) {
#pragma GCC unroll 8
      for (int64_t r = 0; r < A::kRows; ++r) centroids[r] = codebook + (is_matrix ? r * dim * apart : at[r]);
      if constexpr (fixed > 0 && !is_matrix) {
#pragma GCC unroll 9
        for (int64_t i = 0; i < fixed; ++i) multiply(i);
      } else {
        constexpr int64_t steps = fixed > 0 ? fixed : kSteps;
        int64_t i = 0;
        for (; i + steps <= dim; i += steps) {
#pragma GCC unroll 8
          for (int64_t step = 0; step < steps; ++step) multiply(i + step);
        }
        for (; i < dim; ++i) multiply(i);
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < A::kRows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) A::store(out + r * out_pitch + v * kLanes, sums[r][v]);
      if constexpr (with_half) A::store(out + r * out_pitch + vectors * kLanes, half_sums[r]);
    }
  }

  using RegistersFn = decltype(&registers<1, 0, false>);

  template <int64_t fixed, bool is_matrix, int64_t apart = 1, bool adds = false, int64_t... halves>
  static RegistersFn registers_for(int64_t wanted, std::integer_sequence<int64_t, halves...>) noexcept {
    static constexpr RegistersFn kTiles[] = {&registers<halves + 1, fixed, is_matrix, apart, adds>...};
    return kTiles[wanted - 1];
  }

  // The product of a matrix [kRows, depth] whose weights lie `apart`, added to start[r].
  template <int64_t apart>
  static void matrix_tile(const Weight* weights, int64_t depth, const Input* panel, const int32_t* rows,
                          const Value* start, Value* out, int64_t out_pitch, int64_t pixels) noexcept {
    constexpr auto kAll = std::make_integer_sequence<int64_t, 2 * A::kVectors>{};
    const RegistersFn run = registers_for<0, true, apart, true>(ceil_div(pixels, kLanes / 2), kAll);
    run(nullptr, weights, depth, 1, panel, rows, start, out, out_pitch);
  }

  static void tile(const uint16_t* at, const Weight* codebook, int64_t dim, int64_t blocks, const Input* panel,
                   const int32_t* rows, Value* out, int64_t out_pitch, int64_t pixels) noexcept {
    constexpr auto kAll = std::make_integer_sequence<int64_t, 2 * A::kVectors>{};
    const int64_t halves = ceil_div(pixels, kLanes / 2);
    const auto misleads = [&] {
      return dim > kSteps && misleads_prefetcher((rows[kSteps] - rows[0]) * static_cast<int64_t>(sizeof(Input)));
    };
    // The usual dims: channels of 1x1 blocks and of Winograd's, in floats or quads, and the nine taps of 3x3 kernels.
    const RegistersFn run = at == nullptr ? misleads() ? registers_for<2 * kSteps, true>(halves, kAll)
                                                       : registers_for<0, true>(halves, kAll)
                            : dim == 1    ? registers_for<1, false>(halves, kAll)
                            : dim == 2    ? registers_for<2, false>(halves, kAll)
                            : dim == 4    ? registers_for<4, false>(halves, kAll)
                            : dim == 8    ? registers_for<8, false>(halves, kAll)
                            : dim == 9    ? registers_for<9, false>(halves, kAll)
                                          : registers_for<0, false>(halves, kAll);
    run(at, codebook, dim, blocks, panel, rows, nullptr, out, out_pitch);
  }
};

}  // namespace pyquant

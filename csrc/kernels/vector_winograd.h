// Winograd's transforms of a vector of tiles, or of channels, at a time: written once over a vector type `V`.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/vector_pieces.h"
#include "kernels/winograd.h"

namespace pyquant {

template <typename V, int64_t m>
struct VectorWinograd {
  using Float = typename V::Float;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kSide = m + 2;

  static Float times(double factor) noexcept { return V::broadcast(static_cast<float>(factor)); }

  // phases[i] = columns m * t + i, for a vector of tiles t.
  static void split_phases(const Float (&line)[m], Float (&phases)[m]) noexcept {
    if constexpr (m == 2) {
      const auto [even, odd] = V::split(line[0], line[1]);
      phases[0] = even, phases[1] = odd;
    } else {
      static_assert(m == 4);
      const auto [even, odd] = V::split(line[0], line[1]);
      const auto [next_even, next_odd] = V::split(line[2], line[3]);
      const auto [zero, two] = V::split(even, next_even);
      const auto [one, three] = V::split(odd, next_odd);
      phases[0] = zero, phases[1] = one, phases[2] = two, phases[3] = three;
    }
  }

  static void merge_phases(const Float (&phases)[m], float* line) noexcept {
    if constexpr (m == 2) {
      const auto [first, second] = V::merge(phases[0], phases[1]);
      V::store(line, first), V::store(line + kLanes, second);
    } else {
      static_assert(m == 4);
      const auto [even, next_even] = V::merge(phases[0], phases[2]);
      const auto [odd, next_odd] = V::merge(phases[1], phases[3]);
      const auto [first, second] = V::merge(even, odd);
      const auto [third, fourth] = V::merge(next_even, next_odd);
      V::store(line, first), V::store(line + kLanes, second);
      V::store(line + 2 * kLanes, third), V::store(line + 3 * kLanes, fourth);
    }
  }

  // to[i * stride] = (input · d)[i] of the matrices in winograd.h, with what rows have in common computed once.
  static void transform_input(const Float (&d)[kSide], Float* to, int64_t stride) noexcept {
    if constexpr (m == 2) {
      to[0] = V::subtract(d[0], d[2]);
      to[stride] = V::add(d[1], d[2]);
      to[2 * stride] = V::subtract(d[2], d[1]);
      to[3 * stride] = V::subtract(d[1], d[3]);
    } else {
      const Float even_a = V::multiply_add(times(-kWinogradB2), d[2], d[4]);
      const Float odd_a = V::multiply_add(times(-kWinogradB2), d[1], d[3]);
      const Float even_b = V::multiply_add(times(-kWinogradA2), d[2], d[4]);
      const Float odd_b = V::multiply_add(times(-kWinogradA2), d[1], d[3]);
      const Float outer = times(kWinogradA2 * kWinogradB2), inner = times(-(kWinogradA2 + kWinogradB2));
      to[0] = V::multiply_add(outer, d[0], V::multiply_add(inner, d[2], d[4]));
      to[stride] = V::multiply_add(times(kWinogradA), odd_a, even_a);
      to[2 * stride] = V::multiply_add(times(-kWinogradA), odd_a, even_a);
      to[3 * stride] = V::multiply_add(times(kWinogradB), odd_b, even_b);
      to[4 * stride] = V::multiply_add(times(-kWinogradB), odd_b, even_b);
      to[5 * stride] = V::multiply_add(outer, d[1], V::multiply_add(inner, d[3], d[5]));
    }
  }

  // to[i] = (output · p)[i], likewise.
  static void transform_output(const Float (&p)[kSide], Float* to, int64_t stride) noexcept {
    const Float sum_a = V::add(p[1], p[2]);
    const Float difference_a = V::subtract(p[1], p[2]);
    if constexpr (m == 2) {
      to[0] = V::add(p[0], sum_a);
      to[stride] = V::subtract(difference_a, p[3]);
    } else {
      constexpr double a = kWinogradA, b = kWinogradB, a2 = kWinogradA2, b2 = kWinogradB2;
      const Float sum_b = V::add(p[3], p[4]);
      const Float difference_b = V::subtract(p[3], p[4]);
      to[0] = V::add(V::add(p[0], sum_a), sum_b);
      to[stride] = V::multiply_add(times(a), difference_a, V::multiply(times(b), difference_b));
      to[2 * stride] = V::multiply_add(times(a2), sum_a, V::multiply(times(b2), sum_b));
      to[3 * stride] = V::multiply_add(times(a * a2), difference_a, V::multiply_add(times(b * b2), difference_b, p[5]));
    }
  }

  static void input(const float* in, int64_t plane, const WinogradRun* runs, int64_t num_runs, int64_t channels,
                    int64_t tiles, float* out, int64_t out_pitch, int64_t out_step) noexcept {
    for (int64_t t = 0; t < tiles; t += kLanes) {
      const WinogradPieces<V, m> pieces(runs, num_runs, t);
      for (int64_t c = 0; c < channels; ++c) {
        const float* const from = in + c * plane;
        Float columns[kSide][kSide];  // by x, then y
        for (int64_t y = 0; y < kSide; ++y) {
          Float line[m], next_line[m], phases[m], next[m];
#pragma GCC unroll 4
          for (int64_t v = 0; v < m; ++v) {
            line[v] = pieces.load(from, y, v, V::broadcast(0.0f), &V::load_lanes);
            next_line[v] = pieces.load(from, y, m + v, V::broadcast(0.0f), &V::load_lanes);
          }
          split_phases(line, phases);
          split_phases(next_line, next);
          Float d[kSide];
#pragma GCC unroll 4
          for (int64_t i = 0; i < m; ++i) d[i] = phases[i];
          d[m] = next[0], d[m + 1] = next[1];
          transform_input(d, &columns[0][y], kSide);
        }
        for (int64_t x = 0; x < kSide; ++x) {
          Float frequencies[kSide];
          transform_input(columns[x], frequencies, 1);
          float* const to = out + x * out_step + c * out_pitch + t;
#pragma GCC unroll 6
          for (int64_t y = 0; y < kSide; ++y) V::store(to + y * kSide * out_step, frequencies[y]);
        }
      }
    }
  }

  static void output(const float* in, int64_t in_pitch, int64_t tiles, float* lines, int64_t line_pitch) noexcept {
    for (int64_t t = 0; t < tiles; t += kLanes) {
      Float rows[m][kSide];
      for (int64_t x = 0; x < kSide; ++x) {
        Float p[kSide];
#pragma GCC unroll 6
        for (int64_t y = 0; y < kSide; ++y) p[y] = V::load(in + (y * kSide + x) * in_pitch + t);
        transform_output(p, &rows[0][x], kSide);
      }
      for (int64_t y = 0; y < m; ++y) {
        Float phases[m];
        transform_output(rows[y], phases, 1);
        merge_phases(phases, lines + y * line_pitch + m * t);
      }
    }
  }

  // to[i * stride] = (weights · g)[i], likewise.
  static void transform_weights(const Float (&g)[3], Float* to, int64_t stride) noexcept {
    if constexpr (m == 2) {
      const Float even = V::multiply(times(0.5), V::add(g[0], g[2])), odd = V::multiply(times(0.5), g[1]);
      to[0] = g[0];
      to[stride] = V::add(even, odd);
      to[2 * stride] = V::subtract(even, odd);
      to[3 * stride] = g[2];
    } else {
      constexpr auto& rows = kWinograd4x4.weights;
      const auto even = [&](int row) {
        return V::multiply_add(times(rows[row][2]), g[2], V::multiply(times(rows[row][0]), g[0]));
      };
      const Float even_a = even(1), odd_a = V::multiply(times(rows[1][1]), g[1]);
      const Float even_b = even(3), odd_b = V::multiply(times(rows[3][1]), g[1]);
      to[0] = V::multiply(times(rows[0][0]), g[0]);
      to[stride] = V::add(even_a, odd_a);
      to[2 * stride] = V::subtract(even_a, odd_a);
      to[3 * stride] = V::add(even_b, odd_b);
      to[4 * stride] = V::subtract(even_b, odd_b);
      to[5 * stride] = g[2];
    }
  }

  // columns[i] = in[lane * 9 + i] for lanes < count. Squares of values are turned: of all their vectors as one
  // sequence, lanes with even numbers come before those with odd ones, so often as it takes to move the number of a row
  // behind that of a column. The last column is collected where vectors are too short for it to be in a square.
  static void load_columns(const float* in, int64_t count, Float (&columns)[9]) noexcept {
    constexpr int kRounds = std::countr_zero(static_cast<uint64_t>(kLanes));
    constexpr int64_t kEach = std::min(kLanes, int64_t{9});
    constexpr int64_t kSquares = 9 / kLanes * kLanes;
    for (int64_t first = 0; first < std::max(kSquares, int64_t{1}); first += kLanes) {
      Float square[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) square[i] = V::load(in + std::min(i, count - 1) * 9 + first);
#pragma GCC unroll 4
      for (int round = 0; round < kRounds; ++round) {
        Float sorted[kLanes];
#pragma GCC unroll 8
        for (int64_t i = 0; i < kLanes / 2; ++i) {
          const auto [even, odd] = V::split(square[2 * i], square[2 * i + 1]);
          sorted[i] = even;
          sorted[i + kLanes / 2] = odd;
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) square[i] = sorted[i];
      }
#pragma GCC unroll 16
      for (int64_t i = 0; i < kEach; ++i) columns[first + i] = square[i];
    }
    if constexpr (kSquares > 0) {
      float last[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) last[i] = in[std::min(i, count - 1) * 9 + 8];
      columns[8] = V::load(last);
    }
  }

  static void weights(const float* in, int64_t channels, float* out, int64_t out_pitch) noexcept {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t count = std::min(kLanes, channels - c);
      Float g[9];
      load_columns(in + 9 * c, count, g);
      Float rows[kSide][3];
#pragma GCC unroll 3
      for (int64_t x = 0; x < 3; ++x) transform_weights({g[x], g[3 + x], g[6 + x]}, &rows[0][x], 3);
      for (int64_t y = 0; y < kSide; ++y) {
        Float frequencies[kSide];
        transform_weights(rows[y], frequencies, 1);
#pragma GCC unroll 6
        for (int64_t x = 0; x < kSide; ++x) {
          V::store_first(out + (y * kSide + x) * out_pitch + c, count, frequencies[x]);
        }
      }
    }
  }

  static WinogradKernels kernels() noexcept { return {.input = &input, .output = &output, .weights = &weights}; }
};

}  // namespace pyquant

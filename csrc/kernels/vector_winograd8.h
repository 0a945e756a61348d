// Winograd's F(2x2, 3x3) of quads, a vector of tiles at a time: written once over a vector type `V` and its VectorGemm.
//
// V provides what vector_bytes.h lists.
//
// The bytes of a vector of quads are widened to two vectors of 16 bits, in which a tile has two lanes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/vector_pieces.h"

namespace pyquant {

template <typename V, typename Gemm>
struct VectorWinograd8 {
  using Float = typename V::Float;
  using Int = typename V::Int;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kSide = kWinograd8Side;
  static constexpr int64_t kFrequencies = kSide * kSide;

  // From the columns of a quad to those of the next one: they are not a power of two apart, for the cache's sake.
  static constexpr int64_t kColumnsPitch = (kFrequencies + 1) * kLanes;
  static_assert(kColumnsPitch <= kWinograd8Columns * kLanes);

  // The columns of d of each row, of all tiles.
  static void find_columns(const uint32_t* in, const WinogradPieces<V, 2>& pieces, Int zeros,
                           uint32_t* columns) noexcept {
#pragma GCC unroll 4
    for (int64_t y = 0; y < kSide; ++y) {
      Int v[kSide];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide; ++i) v[i] = pieces.load(in, y, i, zeros, &V::load_int_lanes);
      const auto left = V::split_int(v[0], v[1]), right = V::split_int(v[2], v[3]);
      uint32_t* const to = columns + y * kSide * kLanes;
      V::store_int(to, left.first), V::store_int(to + kLanes, left.second);
      V::store_int(to + 2 * kLanes, right.first), V::store_int(to + 3 * kLanes, right.second);
    }
  }

  // The matrices of F(2x2, 3x3), as in winograd.h.
  static void transform(Int (&d)[kSide]) noexcept {
    const Int second = d[1];
    d[0] = V::subtract_short(d[0], d[2]);
    d[1] = V::add_short(second, d[2]);
    d[2] = V::subtract_short(d[2], second);
    d[3] = V::subtract_short(second, d[3]);
  }

  // Call take(f, words) for the frequencies of all channels, each two vectors of words.
  template <typename Take>
  static void transform_inputs(const uint32_t* columns, Int four_zeros, const Take& take) noexcept {
    using Row = decltype(V::widen(Int{}))[kSide];
    const auto load = [&](int64_t y, Row& row) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int64_t x = 0; x < kSide; ++x) row[x] = V::widen(V::load_int(columns + (y * kSide + x) * kLanes));
    };
    // What y = 1 and y = 2 are made of stays in registers.
    const auto combine = [&](int64_t y, auto of, const Row& a, const Row& b) __attribute__((always_inline)) {
      Int first[kSide], second[kSide];
#pragma GCC unroll 4
      for (int64_t x = 0; x < kSide; ++x)
        first[x] = of(a[x].first, b[x].first), second[x] = of(a[x].second, b[x].second);
      transform(first), transform(second);
      if (y == 1) {
        first[1] = V::subtract_short(first[1], four_zeros), second[1] = V::subtract_short(second[1], four_zeros);
      }
#pragma GCC unroll 4
      for (int64_t x = 0; x < kSide; ++x) take(y * kSide + x, first[x], second[x]);
    };
    Row one, two, other;
    load(1, one), load(2, two), load(0, other);
    combine(0, &V::subtract_short, other, two);
    combine(1, &V::add_short, one, two);
    combine(2, &V::subtract_short, two, one);
    load(3, other);
    combine(3, &V::subtract_short, one, other);
  }

  static void input(const uint32_t* in, int64_t plane, const WinogradRun* runs, int64_t num_runs, int64_t quads,
                    uint8_t zero, const float* units, uint32_t* columns, uint32_t* out, int64_t out_pitch,
                    int64_t out_step, float* scales, float* mean_of) noexcept {
    const Int four_zeros = V::broadcast_int(4u * zero * 0x00010001u), zeros = V::broadcast_int(zero * 0x01010101u);
    const Int word = V::broadcast_int(0xffff), middle = V::broadcast_int(0x80808080);
    const WinogradPieces<V, 2> pieces(runs, num_runs, 0);
    // To transform inputs twice takes less time than to keep frequencies, which leave the first-level cache.
    Int most[kFrequencies][2], sums[2], largest[2], smallest[2];
    for (Int(&of_frequency)[2] : most) of_frequency[0] = of_frequency[1] = V::broadcast_int(0);
    sums[0] = sums[1] = V::broadcast_int(0);
    largest[0] = largest[1] = V::broadcast_int(0x80008000), smallest[0] = smallest[1] = V::broadcast_int(0x7fff7fff);
    for (int64_t c = 0; c < quads; ++c) {
      uint32_t* const of_quad = columns + c * kColumnsPitch;
      find_columns(in + c * plane, pieces, zeros, of_quad);
      transform_inputs(of_quad, four_zeros, [&](int64_t f, Int first, Int second) __attribute__((always_inline)) {
        const Int both[2] = {first, second};
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          if (f != kWinograd8Mean) {
            most[f][i] = V::max_short(most[f][i], V::magnitude_short(both[i]));
          } else {
            sums[i] = V::add_int(sums[i], V::add_pairs(both[i]));
            largest[i] = V::max_short(largest[i], both[i]), smallest[i] = V::min_short(smallest[i], both[i]);
          }
        }
      });
    }
    const auto sum = V::split_twins(sums[0], sums[1]);
    const Float total = V::to_float(V::add_int(sum.first, sum.second));
    const Int mean = V::to_int(total / V::broadcast(static_cast<float>(4 * quads)));
    V::store(mean_of, V::to_float(mean));
    const auto twice = [&](Int words) {
      words = V::bit_and(words, word);
      return V::twins(V::bit_or(words, V::template shift_left<16>(words)));
    };
    const auto means = twice(mean);
    const Int mean_words[2] = {means.first, means.second};
    for (int i = 0; i < 2; ++i) {
      most[kWinograd8Mean][i] =
          V::max_short(V::subtract_short(largest[i], mean_words[i]), V::subtract_short(mean_words[i], smallest[i]));
    }
    const Float most_factor = V::broadcast(32767.0f), dividend = V::broadcast(127.0f * 32768.0f);
    Int factors[kFrequencies][2];
    for (int64_t f = 0; f < kFrequencies; ++f) {
      const auto of_pairs = V::split_twins(most[f][0], most[f][1]);
      const Int pairs = V::max_short(of_pairs.first, of_pairs.second);
      const Int of_all = V::bit_and(V::max_short(pairs, V::template shift_right<16>(pairs)), word);
      const Float range = V::max(V::broadcast(127.0f), V::to_float(of_all));
      const auto factor = twice(V::to_int(V::min(most_factor, dividend / range)));
      factors[f][0] = factor.first, factors[f][1] = factor.second;
      V::store(scales + f * out_step, V::multiply(range, V::broadcast(units[f])));
    }
    for (int64_t c = 0; c < quads; ++c) {
      uint32_t* const to = out + c * out_pitch;
      // So many places are written to that processors do not foresee the next ones.
      for (int64_t f = 0; f < kFrequencies; ++f) __builtin_prefetch(to + f * out_step + 2 * out_pitch);
      transform_inputs(columns + c * kColumnsPitch, four_zeros,
                       [&](int64_t f, Int first, Int second) __attribute__((always_inline)) {
                         if (f == kWinograd8Mean) {
                           first = V::subtract_short(first, mean_words[0]);
                           second = V::subtract_short(second, mean_words[1]);
                         }
                         const Int quad =
                             V::narrow(V::scale_short(first, factors[f][0]), V::scale_short(second, factors[f][1]));
                         V::store_int(to + f * out_step, V::bit_xor(quad, middle));
                       });
    }
  }

  static constexpr int64_t kRows = V::kRows8;
  static constexpr int64_t kPitch = V::kVectors8 * kLanes;

  static void multiply(const uint32_t* weights, const int32_t* start, int64_t quads, const uint32_t* panel,
                       int64_t panel_step, const int32_t* rows, int32_t* out, int64_t tiles) noexcept {
    for (int64_t f = 0; f < kFrequencies; ++f) {
      Gemm::template matrix_tile<kSide>(weights + f / kSide * kRows * quads * kSide + f % kSide, quads,
                                        panel + f * panel_step, rows, start + f * kRows, out + f * kRows * kPitch,
                                        kPitch, tiles);
    }
  }

  static void output(const int32_t* in, const float* scales, int64_t scales_pitch, const float* mean_of,
                     const float* sums, int64_t rows, int64_t tiles, int32_t* lines, int64_t line_pitch) noexcept {
    for (int64_t t = 0; t < tiles; t += kLanes) {
      Float scale[kSide][kSide], negative[kSide];
      for (int64_t y = 0; y < kSide; ++y) {
        for (int64_t x = 0; x < kSide; ++x) scale[y][x] = V::load(scales + (y * kSide + x) * scales_pitch + t);
      }
      for (int64_t x = 0; x < kSide; ++x) negative[x] = V::subtract(V::broadcast(0.0f), scale[2][x]);
      const Float means = V::load(mean_of + t);
      for (int64_t r = 0; r < rows; ++r) {
        Float top[kSide], bottom[kSide];
#pragma GCC unroll 4
        for (int64_t x = 0; x < kSide; ++x) {
          const auto value = [&](int64_t y) __attribute__((always_inline)) {
            return V::to_float(V::load_int(in + ((y * kSide + x) * kRows + r) * kPitch + t));
          };
          // Nothing that a compiler might join otherwise: no product is added but by multiply_add.
          Float second;
          if (kSide + x == kWinograd8Mean) {
            second = V::multiply_add(value(1), scale[1][x], V::multiply(means, V::broadcast(sums[r])));
          } else {
            second = V::multiply(value(1), scale[1][x]);
          }
          const Float third = value(2);
          top[x] = V::multiply_add(value(0), scale[0][x], V::multiply_add(third, scale[2][x], second));
          bottom[x] = V::multiply_add(value(3), scale[3][x], V::multiply_add(third, negative[x], second));
        }
        const auto write = [&](const Float(&p)[kSide], int32_t* line) __attribute__((always_inline)) {
          const Float left = V::add(p[0], V::add(p[1], p[2])), right = V::add(p[3], V::subtract(p[1], p[2]));
          const auto columns = V::merge(left, right);
          V::store_int(line + 2 * t, V::to_int(columns.first));
          V::store_int(line + 2 * t + kLanes, V::to_int(columns.second));
        };
        write(top, lines + r * line_pitch);
        write(bottom, lines + (kRows + r) * line_pitch);
      }
    }
  }

  static Winograd8Kernels kernels() noexcept {
    return {.product_pitch = kPitch, .input = &input, .multiply = &multiply, .output = &output};
  }
};

}  // namespace pyquant

// Winograd's F(2x2, 3x3) of quads, a vector of tiles at a time: written once over a vector type `V` and its VectorGemm.
//
// V provides what vector_bytes.h lists.
//
// The channels of a quad are widened to 16 bits, two to a lane: channels 0 and 2 in one vector, 1 and 3 in another. So
// all of them stay in their tile's lane.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace pyquant {

template <typename V, typename Gemm>
struct VectorWinograd8 {
  using Float = typename V::Float;
  using Int = typename V::Int;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kSide = kWinograd8Side;
  static constexpr int64_t kFrequencies = kSide * kSide;

  // Channels 0 and 2, or 1 and 3.
  template <bool odd>
  static Int channels_of(Int quads) noexcept {
    if constexpr (odd) quads = V::template shift_right<8>(quads);
    return V::bit_and(quads, V::broadcast_int(0x00ff00ff));
  }

  // The matrices of F(2x2, 3x3), as in winograd.h.
  static void transform(Int (&d)[kSide]) noexcept {
    const Int second = d[1];
    d[0] = V::subtract_short(d[0], d[2]);
    d[1] = V::add_short(second, d[2]);
    d[2] = V::subtract_short(d[2], second);
    d[3] = V::subtract_short(second, d[3]);
  }

  // Call take(f, words) for the frequencies of channels 0 and 2, or 1 and 3. Inputs are found anew for each: those of
  // all channels together do not fit the registers.
  template <bool odd, typename Take>
  static void transform_inputs(const uint32_t* lines, int64_t line_pitch, Int four_zeros, const Take& take) noexcept {
    Int columns[kSide][kSide];  // by x, then y
#pragma GCC unroll 4
    for (int64_t y = 0; y < kSide; ++y) {
      const uint32_t* const line = lines + y * line_pitch;
      const uint32_t* const next_line = line + kSide * line_pitch;
      const auto here = V::split_int(V::load_int(line), V::load_int(line + kLanes));
      const auto next = V::split_int(V::load_int(next_line), V::load_int(next_line + kLanes));
      columns[0][y] = channels_of<odd>(here.first), columns[1][y] = channels_of<odd>(here.second);
      columns[2][y] = channels_of<odd>(next.first), columns[3][y] = channels_of<odd>(next.second);
    }
#pragma GCC unroll 4
    for (int64_t x = 0; x < kSide; ++x) transform(columns[x]);
#pragma GCC unroll 4
    for (int64_t y = 0; y < kSide; ++y) {
      Int row[kSide] = {columns[0][y], columns[1][y], columns[2][y], columns[3][y]};
      transform(row);
      if (y == 1) row[1] = V::subtract_short(row[1], four_zeros);
#pragma GCC unroll 4
      for (int64_t x = 0; x < kSide; ++x) take(y * kSide + x, row[x]);
    }
  }

  static Int low_word(Int words) noexcept { return high_word(V::template shift_left<16>(words)); }
  static Int high_word(Int words) noexcept { return V::shift_right_signed(words, 16); }
  static Int centred(int64_t f, Int words, Int means) noexcept {
    return f == kWinograd8Mean ? V::subtract_short(words, means) : words;
  }

  // Two words of 16 bits in each lane.
  static Int twice(Int words) noexcept { return V::bit_or(words, V::template shift_left<16>(words)); }

  static void input(const uint32_t* lines, int64_t line_pitch, int64_t quad_pitch, int64_t quads, int64_t tiles,
                    uint8_t zero, const float* units, uint32_t* out, int64_t out_pitch, int64_t out_step, float* scales,
                    float* mean_of) noexcept {
    const Int four_zeros = V::broadcast_int(4u * zero * 0x00010001u);
    const Int low_byte = V::broadcast_int(0x00ff00ff), middle = V::broadcast_int(0x80808080);
    const Float most_byte = V::broadcast(127.0f), most_factor = V::broadcast(32767.0f);
    const Float dividend = V::broadcast(127.0f * 32768.0f);
    for (int64_t t = 0; t < tiles; t += kLanes) {
      // To transform inputs twice takes less time than to keep frequencies, which leave the first-level cache.
      Int most[kFrequencies];
      for (Int& of_frequency : most) of_frequency = V::broadcast_int(0);
      Int sum = V::broadcast_int(0), largest = V::broadcast_int(0x80008000), smallest = V::broadcast_int(0x7fff7fff);
      const auto compare = [&](int64_t f, Int words) __attribute__((always_inline)) {
        if (f != kWinograd8Mean) {
          most[f] = V::max_short(most[f], V::magnitude_short(words));
          return;
        }
        sum = V::add_int(sum, V::add_int(low_word(words), high_word(words)));
        largest = V::max_short(largest, words), smallest = V::min_short(smallest, words);
      };
      for (int64_t c = 0; c < quads; ++c) {
        const uint32_t* const of_quad = lines + c * quad_pitch + 2 * t;
        transform_inputs<false>(of_quad, line_pitch, four_zeros, compare);
        transform_inputs<true>(of_quad, line_pitch, four_zeros, compare);
      }
      const Int mean = V::to_int(V::to_float(sum) / V::broadcast(static_cast<float>(4 * quads)));
      const Int means = twice(V::bit_and(mean, V::broadcast_int(0xffff)));
      V::store(mean_of + t, V::to_float(mean));
      most[kWinograd8Mean] = V::max_short(V::subtract_short(largest, means), V::subtract_short(means, smallest));
      Int factors[kFrequencies];
      for (int64_t f = 0; f < kFrequencies; ++f) {
        const Float low = V::to_float(V::bit_and(most[f], V::broadcast_int(0xffff)));
        const Float high = V::to_float(V::template shift_right<16>(most[f]));
        const Float range = V::max(most_byte, V::max(low, high));
        factors[f] = twice(V::to_int(V::min(most_factor, dividend / range)));
        V::store(scales + f * out_step + t, V::multiply(range, V::broadcast(units[f])));
      }
      for (int64_t c = 0; c < quads; ++c) {
        const uint32_t* const of_quad = lines + c * quad_pitch + 2 * t;
        uint32_t* const to = out + c * out_pitch + t;
        // So many places are written to that processors do not foresee the next ones.
        for (int64_t f = 0; f < kFrequencies; ++f) __builtin_prefetch(to + f * out_step + 2 * out_pitch);
        Int even[kFrequencies];
        transform_inputs<false>(of_quad, line_pitch, four_zeros,
                                [&](int64_t f, Int words) __attribute__((always_inline)) {
                                  even[f] = V::bit_and(V::scale_short(centred(f, words, means), factors[f]), low_byte);
                                });
        transform_inputs<true>(
            of_quad, line_pitch, four_zeros, [&](int64_t f, Int words) __attribute__((always_inline)) {
              const Int odd =
                  V::template shift_left<8>(V::bit_and(V::scale_short(centred(f, words, means), factors[f]), low_byte));
              V::store_int(to + f * out_step, V::bit_xor(V::bit_or(even[f], odd), middle));
            });
      }
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

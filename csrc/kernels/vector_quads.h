// Quads of weights decoded from codebooks of bytes: written once over vectors of 16 bytes, `B`, and four of them, `L`.
//
// B provides   Bytes, load, load_half and load_four (the others are zero), low and high (the bytes of two vectors by
//              turns: of their first and last halves), low_pairs, high_pairs (the same of pairs of bytes), low_halves
//              (side by side), add_parts (of int16), rounded (of two vectors of parts, to bytes), store, store_first
//              (the first n quads)
// L provides   what FourVectors does
//
// The taps of each channel lie side by side in a centroid. Sums over codebooks are made of these; then four channels
// are interleaved, 16 taps at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/sizes.h"
#include "kernels/kernels.h"

namespace pyquant {

constexpr int64_t kTapsOfVector = 16;

// Four vectors, where registers are no wider than one.
template <typename B>
struct FourVectors {
  struct Lanes {
    typename B::Bytes of[4];
  };

  // The first 64 / n bytes at each place.
  template <int64_t n>
  static Lanes load(const int8_t* const (&places)[n]) {
    Lanes lanes;
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) lanes.of[k] = B::load(places[k * n / 4] + k % (4 / n) * kTapsOfVector);
    return lanes;
  }

  // So many parts, 8 in a vector, and sums of them; and the bytes that they are rounded to.
  struct Parts {
    typename B::Bytes of[8];
  };
  template <int64_t n>
  static Parts load(const int16_t* const (&places)[n]) {
    Parts parts;
#pragma GCC unroll 8
    for (int64_t k = 0; k < 8; ++k) parts.of[k] = B::load(places[k * n / 8] + k % (8 / n) * (kTapsOfVector / 2));
    return parts;
  }
  static Parts add(Parts a, const Parts& b) {
#pragma GCC unroll 8
    for (int64_t k = 0; k < 8; ++k) a.of[k] = B::add_parts(a.of[k], b.of[k]);
    return a;
  }
  static Lanes interleave(const Parts& parts) {
    Lanes lanes;
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) lanes.of[k] = B::rounded(parts.of[2 * k], parts.of[2 * k + 1]);
    return interleave(lanes);
  }

  // Lane k becomes the quads of taps 4 * k..
  static Lanes interleave(const Lanes& channels) {
    const auto& [a, b, c, d] = channels.of;
    const auto first = B::low(a, b), second = B::low(c, d), third = B::high(a, b), fourth = B::high(c, d);
    return {{B::low_pairs(first, second), B::high_pairs(first, second), B::low_pairs(third, fourth),
             B::high_pairs(third, fourth)}};
  }
  static typename B::Bytes lane(const Lanes& lanes, int64_t k) { return lanes.of[k]; }
  // The first `count` lanes at least.
  static void store(uint32_t* p, const Lanes& lanes, int64_t count) {
    for (int64_t k = 0; k < count; ++k) B::store(p + 4 * k, lanes.of[k]);
  }
};

template <typename B, typename L = FourVectors<B>>
struct VectorQuads {
  using Bytes = typename B::Bytes;

  // Where a vector of four quads goes in a row, and how many of them are taps.
  struct Place {
    int64_t at, count;
  };
  static Place place_of(const ByteCentroids& c, const int32_t* begin, int64_t vector) {
    const int64_t row_vectors = c.row_width() / kQuad, column = vector % row_vectors * kQuad;
    return {.at = begin[vector / row_vectors] + column, .count = std::min(c.columns - column, kQuad)};
  }

  // The taps of four channels: of n centroids, each so many bytes or parts.
  template <int64_t n, typename Value>
  static auto load(const Value* values, const uint16_t* codes, int64_t of_centroid) {
    const Value* places[n];
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) places[k] = values + codes[k] * of_centroid;
    return L::template load<n>(places);
  }

  // Centroids whose channels are as wide as a vector; n of them are put together.
  template <int64_t n, typename Value>
  static void decode_vectors(const ByteCentroids& c, const Value* values, const uint16_t* codes, int64_t codes_step,
                             int64_t code_pitch, const int32_t* begin, uint32_t* out, int64_t out_pitch,
                             int64_t outputs, int64_t positions) noexcept {
    constexpr int64_t kValues = 4 * kTapsOfVector / n;
    const int64_t quads = n > 1 ? 1 : c.quads(), all = positions * quads, codebooks = c.codebooks;
    const int64_t of_centroid = quads * kValues, of_codebook = c.centroids * of_centroid, columns = c.columns;
    const int64_t vectors = c.rows * (c.row_width() / kQuad);
    Place places[4];
    for (int64_t v = 0; v < vectors; ++v) places[v] = place_of(c, begin, v);
    // So many can be written with what lies behind their taps, which the next ones overwrite; behind the last, others
    // lie.
    const int64_t whole_lanes = c.rows > 1 ? 0 : all - ceil_div(kTapsOfVector, columns) + 1;
    const int64_t whole_vectors = all - ceil_div(kQuad - 1, columns);
    for (int64_t o = 0; o < outputs; ++o, codes += code_pitch, out += out_pitch) {
      const auto taps_of = [=](int64_t i) __attribute__((always_inline)) {
        const uint16_t* const blocks = codes + (n > 1 ? n * i : i / quads);
        const Value* const first = values + (n > 1 ? 0 : i % quads * kValues);
        auto channels = load<n>(first, blocks, of_centroid);
        if constexpr (sizeof(Value) > 1) {
          for (int64_t m = 1; m < codebooks; ++m) {
            channels = L::add(channels, load<n>(first + m * of_codebook, blocks + m * codes_step, of_centroid));
          }
        }
        return L::interleave(channels);
      };
      uint32_t* to = out;
      int64_t i = 0;
      for (; i < whole_lanes; ++i, to += columns) L::store(to + places[0].at, taps_of(i), vectors);
      for (; i < all; ++i, to += columns) {
        const auto taps = taps_of(i);
#pragma GCC unroll 4
        for (int64_t v = 0; v < 4; ++v) {
          if (v == vectors) break;
          if (i < whole_vectors) {
            B::store(to + places[v].at, L::lane(taps, v));
          } else {
            B::store_first(to + places[v].at, places[v].count, L::lane(taps, v));
          }
        }
      }
    }
  }

  // The quad of four taps of a channel, of which the first is at `first` of the centroid.
  static Bytes four_taps(const ByteCentroids& c, const uint16_t* code, int64_t codes_step, int64_t first,
                         int64_t of_centroid) noexcept {
    if (c.codebooks == 1) return B::load_four(c.bytes + *code * of_centroid + first);
    Bytes sum = B::load_half(c.parts + *code * of_centroid + first);
    for (int64_t m = 1; m < c.codebooks; ++m) {
      const int64_t centroid = m * c.centroids + code[m * codes_step];
      sum = B::add_parts(sum, B::load_half(c.parts + centroid * of_centroid + first));
    }
    return B::rounded(sum, sum);
  }

  // Others, four taps at a time.
  static void decode_fours(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                           const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                           int64_t positions) noexcept {
    const int64_t n = c.n(), quads = c.quads(), all = positions * quads, width = c.width();
    for (int64_t v = 0; v < c.rows * (c.row_width() / kQuad); ++v) {
      const Place place = place_of(c, begin, v);
      // Where a row is one vector, the next one of it overwrites what is too much.
      const bool fits = place.count == kQuad;
      const int64_t whole = fits ? all : c.columns < kQuad ? all - ceil_div(kQuad - 1, c.columns) : 0;
      for (int64_t o = 0; o < outputs; ++o) {
        uint32_t* to = out + o * out_pitch + place.at;
        for (int64_t i = 0; i < all; ++i, to += c.columns) {
          const uint16_t* const blocks = codes + o * code_pitch + i / quads * n;
          const auto channel = [&](int64_t k) {
            return four_taps(c, blocks + k / c.channels, codes_step,
                             (i % quads * kQuad + k % c.channels) * width + v * kQuad, c.channels * width);
          };
          const Bytes four = B::low_pairs(B::low(channel(0), channel(1)), B::low(channel(2), channel(3)));
          if (i < whole) {
            B::store(to, four);
          } else {
            B::store_first(to, place.count, four);
          }
        }
      }
    }
  }

  // Centroids with one tap, which are quads as they lie.
  static void copy_quads(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                         const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                         int64_t positions) noexcept {
    const int64_t quads = c.quads();
    for (int64_t o = 0; o < outputs; ++o, codes += code_pitch) {
      uint32_t* to = out + o * out_pitch + begin[0];
      for (int64_t p = 0; p < positions; ++p) {
        for (int64_t q = 0; q < quads; ++q) {
          B::store_first(to++, 1, four_taps(c, codes + p, codes_step, q * kQuad, c.channels));
        }
      }
    }
  }

  // Four quads with one tap each: rounded sums of the parts of 4 / quads centroids of each codebook.
  template <int64_t quads>
  static Bytes four_sums(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step) noexcept {
    constexpr int64_t n = 4 / quads;
    const int16_t* parts = c.parts;
    const auto part = [&](int64_t k) {
      const int16_t* const centroid = parts + codes[k] * quads * kQuad;
      return quads == 1 ? B::load_half(centroid) : B::load(centroid);
    };
    Bytes sums[n];
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) sums[k] = part(k);
    for (int64_t m = 1; m < c.codebooks; ++m) {
      parts += c.centroids * quads * kQuad;
      codes += codes_step;
#pragma GCC unroll 4
      for (int64_t k = 0; k < n; ++k) sums[k] = B::add_parts(sums[k], part(k));
    }
    if constexpr (quads == 2) {
      return B::rounded(sums[0], sums[1]);
    } else {
      return B::rounded(B::low_halves(sums[0], sums[1]), B::low_halves(sums[2], sums[3]));
    }
  }

  // Sums of such centroids: quads as they lie, four at a time.
  template <int64_t quads>
  static void add_quads(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                        const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                        int64_t positions) noexcept {
    constexpr int64_t n = 4 / quads;
    const int64_t whole = positions / n * n;
    for (int64_t o = 0; o < outputs; ++o) {
      const uint16_t* const blocks = codes + o * code_pitch;
      uint32_t* const row = out + o * out_pitch;
      for (int64_t p = 0; p < whole; p += n) {
        B::store(row + begin[0] + p * quads, four_sums<quads>(c, blocks + p, codes_step));
      }
      const int32_t rest_begin[] = {begin[0] + static_cast<int32_t>(whole * quads)};
      copy_quads(c, blocks + whole, codes_step, code_pitch, rest_begin, row, out_pitch, 1, positions - whole);
    }
  }

  // The same of one or two channels, which are put together byte by byte.
  static void join_bytes(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                         const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                         int64_t positions) noexcept {
    const auto byte = [&](const uint16_t* code, int64_t channel) {
      if (c.codebooks == 1) return static_cast<int>(c.bytes[*code * c.channels + channel]);
      int sum = kPart / 2;
      for (int64_t m = 0; m < c.codebooks; ++m) {
        sum += c.parts[(m * c.centroids + code[m * codes_step]) * c.channels + channel];
      }
      return sum >> kPartBits;
    };
    for (int64_t o = 0; o < outputs; ++o, codes += code_pitch) {
      const uint16_t* blocks = codes;
      for (int64_t p = 0; p < positions; ++p, blocks += c.n()) {
        uint32_t quad = 0;
        for (int64_t k = 0; k < kQuad; ++k) {
          quad |= (static_cast<uint32_t>(byte(blocks + k / c.channels, k % c.channels)) & 0xff) << (8 * k);
        }
        out[o * out_pitch + begin[0] + p] = quad;
      }
    }
  }

  template <int64_t n>
  static void decode_wide(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                          const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                          int64_t positions) noexcept {
    const auto decode = [&](const auto* values) {
      decode_vectors<n>(c, values, codes, codes_step, code_pitch, begin, out, out_pitch, outputs, positions);
    };
    if (c.codebooks == 1) {
      decode(c.bytes);
    } else {
      decode(c.parts);
    }
  }

  static void decode(const ByteCentroids& c, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                     const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t outputs,
                     int64_t positions) noexcept {
    const DecodeQuadsFn copy = c.codebooks == 1 || c.quads() > 2 ? &copy_quads
                               : c.quads() == 2                  ? &add_quads<2>
                                                                 : &add_quads<1>;
    const DecodeQuadsFn run = c.width() == 1               ? c.n() == 1 ? copy : &join_bytes
                              : c.width() != kTapsOfVector ? &decode_fours
                              : c.n() == 4                 ? &decode_wide<4>
                              : c.n() == 2                 ? &decode_wide<2>
                                                           : &decode_wide<1>;
    run(c, codes, codes_step, code_pitch, begin, out, out_pitch, outputs, positions);
  }
};

}  // namespace pyquant

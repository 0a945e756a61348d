// The vectorised integer kernels, written once over a vector type `V`; see vector_kernels.h.
//
// V provides what is listed there and, for integers,
//
//   Int, HalfInt   a vector of kLanes values of four bytes, and one of half as many
//   Decoder        the VectorQuads of its vectors
//   Inputs, HalfInputs, Weights   quads as dot() takes them, made by inputs() and weights()
//   kAddsInPairs   whether the register tile multiplies by dot_in_pairs(weights, quads, sums), of vectors as they are,
//                  which adds two products in 16 bits
//   kDotsRows      whether dot() takes weights that differ from lane to lane, and costs no more then
//   kRows8, kVectors8   the register tile
//   kLeastVectors8      a narrower register tile is no faster
//   kDotCost       of what it multiplies by, in multiply-adds of floats
//   kTable8Vectors      vectors of int16 per table row
//   load_int, store_int (any alignment), load_int_first, store_int_first (the first n lanes), broadcast_int,
//   dot(weights, inputs, sums) of each lane, exact, bit_and, bit_or, bit_xor, shift_left<n>, shift_right<n> (zeros come
//   in), shift_right_signed, add_int, add_short, subtract_short (of int16, modulo 2^16), max_short, min_short,
//   magnitude_short, scale_short (of int16: products by 2^-15, halves upwards), max_bytes, min_bytes (unsigned),
//   broadcast_byte, byte_of(quads, i), to_quads (of four vectors of int, clamped to 0..255), pack (of two vectors, to
//   int16 in any order), unpack (its inverse), to_float, to_int (to the nearest, halves to even), split_int,
//   load_half_int, store_half_int, dot of halves, load_int_lanes, widen (of bytes, to two vectors of int16: two lanes,
//   the twins, have those of one lane), narrow (its inverse, clamped to int8), twins (of a vector: each lane where
//   widen() leaves its bytes), split_twins (of two vectors: the first of all twins, and the second), add_pairs (of
//   int16, to int)
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/sizes.h"
#include "kernels/kernels.h"
#include "kernels/table_places.h"
#include "kernels/vector_dot.h"
#include "kernels/vector_gemm.h"
#include "kernels/vector_quads.h"
#include "kernels/vector_sparse.h"
#include "kernels/vector_winograd8.h"

namespace pyquant {

// The larger of each two bytes.
inline uint32_t max_quad(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const uint32_t left = a >> shift & 0xff, right = b >> shift & 0xff;
    result |= (left > right ? left : right) << shift;
  }
  return result;
}

template <typename V>
struct ByteKernels {
  using Float = typename V::Float;
  using Int = typename V::Int;
  using Inputs = typename V::Inputs;
  using Weights = typename V::Weights;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kTablePixels = V::kTable8Vectors * 2 * kLanes;
  static_assert(kTablePixels <= kMostTilePixels && V::kVectors8 * kLanes <= kMostTilePixels);

  // What VectorGemm and VectorSparse multiply quads with.
  struct Quads {
    using Weight = uint32_t;
    using Input = uint32_t;
    using Value = int32_t;
    using Sums = typename V::Int;
    using HalfSums = typename V::HalfInt;
    using Inputs = typename V::Inputs;
    using HalfInputs = typename V::HalfInputs;
    using Weights = typename V::Weights;
    static constexpr int64_t kLanes = V::kLanes;
    static constexpr int64_t kRows = V::kRows8;
    static constexpr int64_t kVectors = V::kVectors8;

    static Sums zeros() { return V::broadcast_int(0); }
    static HalfSums half_zeros() { return V::low_half_int(zeros()); }
    static Sums all(Value value) { return V::broadcast_int(static_cast<uint32_t>(value)); }
    static HalfSums half_all(Value value) { return V::low_half_int(all(value)); }
    static Sums sums(const Value* p) { return V::load_int(p); }
    static Inputs inputs(const Input* p) { return V::inputs(V::load_int(p)); }
    static HalfInputs half_inputs(const Input* p) { return V::inputs(V::load_half_int(p)); }
    static Inputs inputs_first(const Input* p, int64_t count) { return V::inputs(V::load_int_first(p, count)); }
    static Weights weights(const Weight* p) { return V::weights(V::broadcast_int(*p)); }
    static Weights row(const Weight* p) { return V::weights(V::load_int(p)); }
    static Weights row_first(const Weight* p, int64_t count) { return V::weights(V::load_int_first(p, count)); }
    static Sums multiply_add(Weights w, Inputs x, Sums sums) { return V::dot(w, x, sums); }
    static HalfSums multiply_add(Weights w, HalfInputs x, HalfSums sums) { return V::dot(w, x, sums); }
    static Sums add(Sums a, Sums b) { return V::add_int(a, b); }
    static Value total(Sums sums) {
      Value lanes[kLanes];
      V::store_int(lanes, sums);
      Value sum = 0;
      for (const Value lane : lanes) sum += lane;
      return sum;
    }
    static void store(Value* p, Sums sums) { V::store_int(p, sums); }
    static void store(Value* p, HalfSums sums) { V::store_half_int(p, sums); }
  };

  // The same by dot_in_pairs().
  struct QuadsInPairs : Quads {
    using Sums = typename V::Int;
    using HalfSums = typename V::HalfInt;
    using Inputs = typename V::Int;
    using HalfInputs = typename V::HalfInt;
    using Weights = typename V::Int;

    static Inputs inputs(const uint32_t* p) { return V::load_int(p); }
    static HalfInputs half_inputs(const uint32_t* p) { return V::load_half_int(p); }
    static Weights weights(const uint32_t* p) { return V::broadcast_int(*p); }
    static Sums multiply_add(Weights w, Inputs x, Sums sums) { return V::dot_in_pairs(w, x, sums); }
    static HalfSums multiply_add(Weights w, HalfInputs x, HalfSums sums) { return V::dot_in_pairs(w, x, sums); }
  };
  using TileQuads = std::conditional_t<V::kAddsInPairs, QuadsInPairs, Quads>;

  static void turn_quads(const uint32_t* in, const int32_t* at, int64_t taps, int64_t pixels, uint32_t* out,
                         int64_t pitch) noexcept {
    const int64_t groups = ceil_div(taps, 4);
    const Int even = V::broadcast_int(0x00ff00ff), odd = V::broadcast_int(0xff00ff00);
    const Int low = V::broadcast_int(0x0000ffff), high = V::broadcast_int(0xffff0000);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t p = 0; p < pixels; p += kLanes) {
        const auto row = [&](int64_t i) {
          return 4 * g + i < taps ? V::load_int(in + at[4 * g + i] + p) : V::broadcast_int(0);
        };
        const Int r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
        // Bytes 0 and 2 of two rows, bytes 1 and 3 of two rows; then pairs of these.
        const Int even01 = V::bit_or(V::bit_and(r0, even), V::template shift_left<8>(V::bit_and(r1, even)));
        const Int even23 = V::bit_or(V::bit_and(r2, even), V::template shift_left<8>(V::bit_and(r3, even)));
        const Int odd01 = V::bit_or(V::template shift_right<8>(V::bit_and(r0, odd)), V::bit_and(r1, odd));
        const Int odd23 = V::bit_or(V::template shift_right<8>(V::bit_and(r2, odd)), V::bit_and(r3, odd));
        const auto write = [&](int64_t channel, Int quad) {
          V::store_int(out + (channel * groups + g) * pitch + p, quad);
        };
        write(0, V::bit_or(V::bit_and(even01, low), V::template shift_left<16>(even23)));
        write(1, V::bit_or(V::bit_and(odd01, low), V::template shift_left<16>(odd23)));
        write(2, V::bit_or(V::template shift_right<16>(even01), V::bit_and(even23, high)));
        write(3, V::bit_or(V::template shift_right<16>(odd01), V::bit_and(odd23, high)));
      }
    }
  }

  // The inputs of a block stay in registers while all centroids pass by, where `fixed`, their quads, is not 0.
  template <int64_t fixed>
  static void build_column(const uint32_t* codebook, int64_t centroids, int64_t any_dim, const uint32_t* panel,
                           int shift, int16_t* table) noexcept {
    constexpr int64_t kept = fixed > 0 ? fixed : 1;
    const int64_t dim = fixed > 0 ? fixed : any_dim;
    Inputs inputs[kept][2];
    const auto read = [&](int64_t i, int64_t v) {
      return V::inputs(V::load_int(panel + i * kTablePixels + v * kLanes));
    };
    if constexpr (fixed > 0) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < fixed; ++i) inputs[i][0] = read(i, 0), inputs[i][1] = read(i, 1);
    }
    const Int half = V::broadcast_int(uint32_t{1} << shift >> 1);
    for (int64_t k = 0; k < centroids; ++k, codebook += dim, table += kTablePixels) {
      Int first = half, second = half;
#pragma GCC unroll 8
      for (int64_t i = 0; i < dim; ++i) {
        if constexpr (fixed == 0) inputs[0][0] = read(i, 0), inputs[0][1] = read(i, 1);
        const Weights weights = V::weights(V::broadcast_int(codebook[i]));
        first = V::dot(weights, inputs[i % kept][0], first);
        second = V::dot(weights, inputs[i % kept][1], second);
      }
      V::store_int(table, V::pack(V::shift_right_signed(first, shift), V::shift_right_signed(second, shift)));
    }
  }

  static void table_build8(const uint32_t* codebook, int64_t centroids, int64_t dim, const uint32_t* panel,
                           int64_t pixels, int64_t shift, int16_t* table) noexcept {
    const auto build = dim == 1   ? &build_column<1>
                       : dim == 2 ? &build_column<2>
                       : dim == 3 ? &build_column<3>
                       : dim == 4 ? &build_column<4>
                                  : &build_column<0>;
    for (int64_t p = 0; p < pixels; p += 2 * kLanes) {
      build(codebook, centroids, dim, panel + p, static_cast<int>(shift), table + p);
    }
  }

  template <int64_t vectors>
  static void sum_rows(const uint16_t* at, int64_t positions, const int16_t* tables, int32_t* sums, int64_t outputs,
                       bool accumulate) noexcept {
    for (int64_t o = 0; o < outputs; ++o, at += positions, sums += kTablePixels) {
      Int sum[vectors];
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) sum[v] = V::broadcast_int(0);
      for_places(at, positions, [&](uint64_t place) __attribute__((always_inline)) {
        const int16_t* row = tables + place * (kTableStep / sizeof(int16_t));
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) sum[v] = V::add_short(sum[v], V::load_int(row + v * 2 * kLanes));
      });
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) {
        const auto wide = V::unpack(sum[v]);
        int32_t* to = sums + v * 2 * kLanes;
        V::store_int(to, accumulate ? V::add_int(V::load_int(to), wide.first) : wide.first);
        V::store_int(to + kLanes, accumulate ? V::add_int(V::load_int(to + kLanes), wide.second) : wide.second);
      }
    }
  }

  using SumRowsFn = decltype(&sum_rows<1>);

  template <int64_t... vectors>
  static SumRowsFn sum_rows_for(int64_t wanted, std::integer_sequence<int64_t, vectors...>) noexcept {
    static constexpr SumRowsFn kWidths[] = {&sum_rows<vectors + 1>...};
    return kWidths[wanted - 1];
  }

  static void table_sum8(const uint16_t* at, int64_t positions, const int16_t* tables, int32_t* sums, int64_t outputs,
                         int64_t pixels, bool accumulate) noexcept {
    constexpr auto kAll = std::make_integer_sequence<int64_t, V::kTable8Vectors>{};
    sum_rows_for(ceil_div(pixels, 2 * kLanes), kAll)(at, positions, tables, sums, outputs, accumulate);
  }

  // Quads of four values each, rounded and clamped to 0..255; NaN becomes 0. Conversion makes what is too small for an
  // int, or NaN, the least int, but so what is too large.
  static Int rounded(const Float (&values)[4]) {
    const Float most = V::broadcast(255.0f);
    return rounded_small(
        {V::min(most, values[0]), V::min(most, values[1]), V::min(most, values[2]), V::min(most, values[3])});
  }

  // The same for values that an int can hold.
  static Int rounded_small(const Float (&values)[4]) {
    return V::to_quads(V::to_int(values[0]), V::to_int(values[1]), V::to_int(values[2]), V::to_int(values[3]));
  }

  template <bool has_residual, bool plain>
  static void finish_rows(const int32_t* in, int64_t in_pitch, const Finish8& finish, uint32_t* out, int64_t out_pitch,
                          int64_t rows, int64_t count) noexcept {
    const Int low = V::broadcast_byte(finish.low), high = V::broadcast_byte(finish.high);
    const Float factor = V::broadcast(finish.residual_scale);
    for (int64_t r = 0; r < rows; r += 4, in += 4 * in_pitch, out += out_pitch) {
      const uint32_t* const residual = has_residual ? finish.residual + r / 4 * out_pitch : nullptr;
      Float scale[4], bias[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        scale[i] = V::broadcast(finish.scale[r + i]);
        bias[i] = V::broadcast(finish.bias[r + i]);
      }
      const auto quads = [&](int64_t p, Int before) {
        Float values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          values[i] = V::multiply_add(V::to_float(V::load_int(in + i * in_pitch + p)), scale[i], bias[i]);
          if constexpr (has_residual) {
            values[i] = V::multiply_add(V::to_float(V::byte_of(before, i)), factor, values[i]);
          }
        }
        if constexpr (plain) return rounded_small(values);
        return V::max_bytes(low, V::min_bytes(high, rounded(values)));
      };
      int64_t p = 0;
      for (; p + kLanes <= count; p += kLanes) {
        V::store_int(out + p, quads(p, has_residual ? V::load_int(residual + p) : Int{}));
      }
      if (const int64_t rest = count - p; rest > 0) {
        V::store_int_first(out + p, rest, quads(p, has_residual ? V::load_int_first(residual + p, rest) : Int{}));
      }
    }
  }

  static void finish_tile8(const int32_t* in, int64_t in_pitch, const Finish8& finish, uint32_t* out, int64_t out_pitch,
                           int64_t rows, int64_t count) noexcept {
    const auto write = finish.residual == nullptr
                           ? finish.plain ? &finish_rows<false, true> : &finish_rows<false, false>
                       : finish.plain ? &finish_rows<true, true>
                                      : &finish_rows<true, false>;
    write(in, in_pitch, finish, out, out_pitch, rows, count);
  }

  static void quantize(const float* in, int64_t in_pitch, int64_t rows, float inverse_scale, float zero, uint32_t* out,
                       int64_t count) noexcept {
    const Float inverse = V::broadcast(inverse_scale), zeros = V::broadcast(zero);
    const auto quads = [&](auto load) {
      Float values[4];
      for (int64_t i = 0; i < 4; ++i) values[i] = i < rows ? V::multiply_add(load(i), inverse, zeros) : zeros;
      return rounded(values);
    };
    int64_t p = 0;
    for (; p + kLanes <= count; p += kLanes) {
      V::store_int(out + p, quads([&](int64_t i) { return V::load(in + i * in_pitch + p); }));
    }
    if (const int64_t rest = count - p; rest > 0) {
      V::store_int_first(out + p, rest, quads([&](int64_t i) { return V::load_first(in + i * in_pitch + p, rest); }));
    }
  }

  static void dequantize(const uint32_t* in, float scale, float zero, float* out, int64_t out_pitch, int64_t rows,
                         int64_t count) noexcept {
    const Float scales = V::broadcast(scale), zeros = V::broadcast(zero);
    const auto value = [&](Int quad, int64_t i) {
      return V::multiply(V::subtract(V::to_float(V::byte_of(quad, static_cast<int>(i))), zeros), scales);
    };
    int64_t p = 0;
    for (; p + kLanes <= count; p += kLanes) {
      const Int quad = V::load_int(in + p);
      for (int64_t i = 0; i < rows; ++i) V::store(out + i * out_pitch + p, value(quad, i));
    }
    if (const int64_t rest = count - p; rest > 0) {
      const Int quad = V::load_int_first(in + p, rest);
      for (int64_t i = 0; i < rows; ++i) V::store_first(out + i * out_pitch + p, rest, value(quad, i));
    }
  }

  static void max_row8(const uint32_t* in, int64_t step, uint32_t* out, int64_t count) noexcept {
    int64_t p = 0;
    const auto inputs = [&](int64_t wanted) {
      if (step == 1) return V::load_int(in + p);
      const Int first = V::load_int(in + 2 * p);
      return V::split_int(first, 2 * wanted > kLanes ? V::load_int(in + 2 * p + kLanes) : first).first;
    };
    if (step <= 2) {
      for (; p + kLanes <= count; p += kLanes)
        V::store_int(out + p, V::max_bytes(V::load_int(out + p), inputs(kLanes)));
      if (const int64_t rest = count - p; rest > 0) {
        V::store_int_first(out + p, rest, V::max_bytes(V::load_int_first(out + p, rest), inputs(rest)));
      }
      return;
    }
    for (; p < count; ++p) out[p] = max_quad(out[p], in[p * step]);
  }

  static KernelTable improve(KernelTable table, const char* isa) noexcept {
    table.isa = isa;
    table.lanes8 = kLanes;
    table.tile8 = {.rows = V::kRows8,
                   .pixels = V::kVectors8 * kLanes,
                   .least_vectors = V::kLeastVectors8,
                   .step_cost = V::kDotCost};
    table.adds_in_pairs = V::kAddsInPairs;
    table.table8_pixels = kTablePixels;
    table.shuffles = false;
    table.gemm_tile8 = &VectorGemm<TileQuads>::tile;
    table.dots_rows = V::kDotsRows;
    if constexpr (V::kDotsRows) table.dot_rows8 = &VectorDot<Quads>::rows;
    table.winograd8 = VectorWinograd8<V, VectorGemm<TileQuads>>::kernels();
    table.decode_quads = &V::Decoder::decode;
    table.turn_quads = &turn_quads;
    table.table_build8 = &table_build8;
    table.table_sum8 = &table_sum8;
    table.sparse_sum8 = &VectorSparse<Quads>::sum;
    table.finish_tile8 = &finish_tile8;
    table.quantize = &quantize;
    table.dequantize = &dequantize;
    table.max_row8 = &max_row8;
    return table;
  }
};

}  // namespace pyquant

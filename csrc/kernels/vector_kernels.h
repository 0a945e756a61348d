// The vectorised kernels, written once over a vector type `V`; each instruction set instantiates them with its own.
//
// V provides   Float   a vector of kLanes floats
//              kRows, kVectors   the register tile: kRows * kVectors sums, kVectors inputs and a broadcast weight must
//              fit
//                                the registers
//              load, store (any alignment), load_first, store_first (the first n lanes), broadcast,
//              multiply_add(a, b, c) = a * b + c, add, max, min (returning the second operand where one is NaN)
//
// V must have internal linkage (an anonymous namespace), so that no two instruction sets share an instantiation.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/kernels.h"

namespace pyquant {

template <typename V>
struct VectorKernels {
  using Float = typename V::Float;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kTableVectors = 2;  // two vectors per table row: half the code look-ups of one
  static constexpr int64_t kTablePixels = kTableVectors * kLanes;
  static_assert(kTablePixels <= kMostTilePixels && V::kVectors * kLanes <= kMostTilePixels);

  // One register tile: kRows * kVectors sums stay in registers for the whole depth. A step loads kVectors inputs and
  // broadcasts kRows weights for kRows * kVectors multiply-adds.
  template <int64_t rows, int64_t vectors>
  static void gemm_registers(const float* a, int64_t a_pitch, const float* b, int64_t b_pitch, float* out,
                             int64_t out_pitch, int64_t depth) noexcept {
    // A constant number of turns, unrolled early: else the compiler keeps a copy of the sums in memory as well.
    Float sums[rows][vectors];
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) sums[r][v] = V::broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
      Float inputs[vectors];
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) inputs[v] = V::load(b + k * b_pitch + v * kLanes);
#pragma GCC unroll 8
      for (int64_t r = 0; r < rows; ++r) {
        const Float weight = V::broadcast(a[r * a_pitch + k]);
#pragma GCC unroll 8
        for (int64_t v = 0; v < vectors; ++v) sums[r][v] = V::multiply_add(weight, inputs[v], sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) V::store(out + r * out_pitch + v * kLanes, sums[r][v]);
    }
  }

  using RegistersFn = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, int64_t) noexcept;

  template <int64_t... shapes>
  static RegistersFn registers_for(int64_t rows, int64_t vectors, std::integer_sequence<int64_t, shapes...>) noexcept {
    static constexpr RegistersFn kTiles[] = {&gemm_registers<shapes / V::kVectors + 1, shapes % V::kVectors + 1>...};
    return kTiles[(rows - 1) * V::kVectors + (vectors - 1)];
  }

  static void gemm_tile(const float* a, int64_t a_pitch, const float* b, int64_t b_pitch, float* out, int64_t out_pitch,
                        int64_t rows, int64_t pixels, int64_t depth) noexcept {
    const int64_t vectors = (pixels + kLanes - 1) / kLanes;
    const RegistersFn tile =
        registers_for(rows, vectors, std::make_integer_sequence<int64_t, V::kRows * V::kVectors>{});
    tile(a, a_pitch, b, b_pitch, out, out_pitch, depth);
  }

  // A centroid is copied with moves of a fixed width that may run over its end: the next block overwrites what is too
  // much, and behind the last one lies slack.
  template <int64_t width>
  static void decode_blocks(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                            int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
    for (int64_t r = 0; r < rows; ++r) {
      float* block = out + r * out_pitch;
      for (int64_t j = 0; j < blocks; ++j, block += dim) {
        const float* centroid = codebook + codes[r * code_pitch + j] * dim;
        for (int64_t i = 0; i < dim; i += width) std::memcpy(block + i, centroid + i, width * sizeof(float));
      }
    }
  }

  static void add_blocks(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                         int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
    for (int64_t r = 0; r < rows; ++r) {
      float* block = out + r * out_pitch;
      for (int64_t j = 0; j < blocks; ++j, block += dim) {
        const float* centroid = codebook + codes[r * code_pitch + j] * dim;
        for (int64_t i = 0; i < dim; ++i) block[i] += centroid[i];
      }
    }
  }

  static void decode_rows(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                          int64_t out_pitch, int64_t rows, int64_t blocks, bool accumulate) noexcept {
    const auto decode = accumulate ? &add_blocks
                        : dim <= 4 ? &decode_blocks<4>
                        : dim <= 8 ? &decode_blocks<8>
                                   : &decode_blocks<kLanes>;
    decode(codes, code_pitch, codebook, dim, out, out_pitch, rows, blocks);
  }

  static void table_sum(const uint16_t* codes, const float* table, int64_t block_stride, float* sums,
                        int64_t outputs) noexcept {
    for (int64_t o = 0; o < outputs; ++o, codes += kBlocksPerPass, sums += kTablePixels) {
      Float sum[kTableVectors];
      for (int64_t v = 0; v < kTableVectors; ++v) sum[v] = V::load(sums + v * kLanes);
      for (int64_t b = 0; b < kBlocksPerPass; ++b) {
        const float* row = table + b * block_stride + codes[b] * kTablePixels;
        for (int64_t v = 0; v < kTableVectors; ++v) sum[v] = V::add(sum[v], V::load(row + v * kLanes));
      }
      for (int64_t v = 0; v < kTableVectors; ++v) V::store(sums + v * kLanes, sum[v]);
    }
  }

  template <bool has_residual>
  static void finish_rows(const float* in, int64_t in_pitch, const float* scale, const float* bias,
                          const float* residual, float low, float high, float* out, int64_t out_pitch, int64_t rows,
                          int64_t count) noexcept {
    const Float lows = V::broadcast(low);
    const Float highs = V::broadcast(high);
    const auto finish = [&](Float value, Float scales, Float shifts) {
      return V::min(highs, V::max(lows, V::multiply_add(value, scales, shifts)));
    };
    for (int64_t r = 0; r < rows; ++r, in += in_pitch, residual += has_residual ? out_pitch : 0, out += out_pitch) {
      const Float scales = V::broadcast(scale[r]);
      const Float biases = V::broadcast(bias[r]);
      int64_t p = 0;
      for (; p + kLanes <= count; p += kLanes) {
        const Float shifts = has_residual ? V::add(biases, V::load(residual + p)) : biases;
        V::store(out + p, finish(V::load(in + p), scales, shifts));
      }
      if (const int64_t rest = count - p; rest > 0) {
        const Float shifts = has_residual ? V::add(biases, V::load_first(residual + p, rest)) : biases;
        V::store_first(out + p, rest, finish(V::load_first(in + p, rest), scales, shifts));
      }
    }
  }

  static void finish_tile(const float* in, int64_t in_pitch, const float* scale, const float* bias,
                          const float* residual, float low, float high, float* out, int64_t out_pitch, int64_t rows,
                          int64_t count) noexcept {
    const auto finish = residual == nullptr ? &finish_rows<false> : &finish_rows<true>;
    finish(in, in_pitch, scale, bias, residual, low, high, out, out_pitch, rows, count);
  }

  // gemm_tile's sums, but no memory: what the arithmetic alone allows.
  static int64_t peak(int64_t steps, float* sink) noexcept {
    Float sums[V::kRows][V::kVectors];
    for (auto& row : sums) {
      for (Float& sum : row) sum = V::load(sink);
    }
    const Float factor = V::load(sink + kLanes);
    for (int64_t i = 0; i < steps; ++i) {
      for (auto& row : sums) {
        for (Float& sum : row) sum = V::multiply_add(factor, factor, sum);
      }
    }
    for (const auto& row : sums) {
      for (const Float& sum : row) V::store(sink, V::add(V::load(sink), sum));
    }
    return V::kRows * V::kVectors * kLanes;
  }

  static KernelTable improve(KernelTable table, const char* isa) noexcept {
    table.isa = isa;
    table.lanes = kLanes;
    table.tile_rows = V::kRows;
    table.tile_pixels = V::kVectors * kLanes;
    table.table_pixels = kTablePixels;
    table.gemm_tile = &gemm_tile;
    table.decode_rows = &decode_rows;
    table.table_sum = &table_sum;
    table.finish_tile = &finish_tile;
    table.peak = &peak;
    return table;
  }
};

}  // namespace pyquant

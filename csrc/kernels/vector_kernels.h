// The vectorised kernels, written once over a vector type `V`; each instruction set instantiates them with its own.
//
// V provides   Float, Half   a vector of kLanes floats, and one of half as many; the compiler knows how to divide the
//                            former, and its bits are those of as many int32_t
//              kRows, kVectors   the register tile: kRows * kVectors sums, kVectors inputs and a broadcast weight must
//                                fit the registers
//              kLeastVectors   a narrower register tile is no faster
//              kTableVectors   an even number of vectors per table row: more save look-ups of codes
//              kResidentVectors   so many vectors of each of 9 inputs fit the registers, beside sums and a weight
//              load, store (any alignment), load_first, store_first (the first n lanes), lanes (from one up to another
//              one), load_lanes (these; nothing else is read, and another vector has the other lanes), broadcast,
//              multiply_add(a, b, c) = a * b + c, multiply, add, subtract, max, min (returning the second operand where
//              one is NaN), max_or_nan (returning the NaN), split (of two vectors, the Pair of the lanes with even and
//              with odd number), merge (its inverse), sum (of all lanes), load_half, store_half, low_half (the first
//              lanes), multiply_add of halves
//
// V must have internal linkage (an anonymous namespace), so that no two instruction sets share an instantiation.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/sizes.h"
#include "kernels/kernels.h"
#include "kernels/table_places.h"
#include "kernels/vector_curves.h"
#include "kernels/vector_dot.h"
#include "kernels/vector_gemm.h"
#include "kernels/vector_sparse.h"
#include "kernels/vector_winograd.h"

namespace pyquant {

template <typename V>
struct VectorKernels {
  using Float = typename V::Float;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kTableVectors = V::kTableVectors;
  static constexpr int64_t kTablePixels = kTableVectors * kLanes;
  static_assert(kTablePixels <= kMostTilePixels && V::kVectors * kLanes <= kMostTilePixels);

  template <bool every_second>
  static void copy_run(const float* from, float* to, int64_t size) noexcept {
    const auto next = [&](int64_t i) {
      if constexpr (every_second) return V::split(V::load(from + 2 * i), V::load(from + 2 * i + kLanes)).first;
      return V::load(from + i);
    };
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) V::store(to + i, next(i));
    if (i < size) V::store_first(to + i, size - i, next(i));
  }

  // Whatever a value means: loads and stores of vectors leave its bits alone, and so does this.
  static void copy_value(const void* from, void* to) noexcept { std::memcpy(to, from, sizeof(float)); }

  static void pack_rows(const PanelRun* runs, int64_t num_runs, int64_t step, const void* in, int64_t plane,
                        const PanelRow* rows, int64_t num_rows, uint32_t outside, void* panel, int64_t pitch) noexcept {
    // All rows of a run together: its size decides the branches, the same for each.
    for (const PanelRun* run = runs; run < runs + num_runs; ++run) {
      const auto for_rows = [&](auto copy) {
        for (const PanelRow* row = rows; row < rows + num_rows; ++row) {
          copy(static_cast<const float*>(in) + row->channel * plane + run->from,
               static_cast<float*>(panel) + row->row * pitch + run->to, run->size);
        }
      };
      if (run->from == PanelRun::kOutside) {
        for_rows([&](const float*, float* to, int64_t size) {
          for (int64_t i = 0; i < size; ++i) copy_value(&outside, to + i);
        });
      } else if (step == 1) {
        for_rows(&copy_run<false>);
      } else if (step == 2) {
        for_rows(&copy_run<true>);
      } else {
        for_rows([&](const float* from, float* to, int64_t size) {
          for (int64_t i = 0; i < size; ++i) copy_value(from + i * step, to + i);
        });
      }
    }
  }

  // What VectorGemm and VectorSparse multiply floats with.
  struct Floats {
    using Weight = float;
    using Input = float;
    using Value = float;
    using Sums = typename V::Float;
    using HalfSums = typename V::Half;
    using Inputs = Sums;
    using HalfInputs = HalfSums;
    using Weights = Sums;
    static constexpr int64_t kLanes = V::kLanes;
    static constexpr int64_t kRows = V::kRows;
    static constexpr int64_t kVectors = V::kVectors;

    static Sums zeros() { return V::broadcast(0.0f); }
    static HalfSums half_zeros() { return V::low_half(zeros()); }
    static Sums sums(const Value* p) { return V::load(p); }
    static Inputs inputs(const Input* p) { return V::load(p); }
    static HalfInputs half_inputs(const Input* p) { return V::load_half(p); }
    static Inputs inputs_first(const Input* p, int64_t count) { return V::load_first(p, count); }
    static Weights weights(const Weight* p) { return V::broadcast(*p); }
    static Weights row(const Weight* p) { return V::load(p); }
    static Weights row_first(const Weight* p, int64_t count) { return V::load_first(p, count); }
    static Sums multiply_add(Weights w, Inputs x, Sums sums) { return V::multiply_add(w, x, sums); }
    static HalfSums multiply_add(Weights w, HalfInputs x, HalfSums sums) {
      return V::multiply_add(V::low_half(w), x, sums);
    }
    static Sums add(Sums a, Sums b) { return V::add(a, b); }
    static Value total(Sums sums) { return V::sum(sums); }
    static void store(Value* p, Sums sums) { V::store(p, sums); }
    static void store(Value* p, HalfSums sums) { V::store_half(p, sums); }
  };

  // Some floats that the compiler keeps in as many registers as they take.
  template <int64_t width>
  struct FloatParts {
    typedef float Vector __attribute__((vector_size(width * sizeof(float))));
    static Vector load(const float* p) {
      Vector v;
      std::memcpy(&v, p, sizeof v);
      return v;
    }
    static void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
  };

  // Centroids are added by vectors of a fixed width that may run over their end: the next block overwrites what is too
  // much, and behind the last one lies slack. `fixed` is a dim known to the compiler, whose sums stay in registers
  // while codebooks pass by, or 0.
  template <int64_t fixed>
  static void decode_blocks(const Codebooks& codebooks, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                            float* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
    constexpr int64_t kWidth = fixed > 0 ? std::min(kLanes, fixed <= 4 ? int64_t{4} : fixed <= 8 ? 8 : kLanes) : kLanes;
    constexpr int64_t kWhole = fixed / kWidth, kRest = fixed % kWidth;
    constexpr int64_t kTail = kRest <= 4 ? 4 : kRest <= 8 ? 8 : kWidth;
    using Part = FloatParts<kWidth>;
    using Tail = FloatParts<kTail>;
    const int64_t dim = fixed > 0 ? fixed : codebooks.dim;
    const int64_t step = codebooks.centroids * dim;
    for (int64_t r = 0; r < rows; ++r, codes += code_pitch, out += out_pitch) {
      float* block = out;
      for (int64_t j = 0; j < blocks; ++j, block += dim) {
        const float* centroid = codebooks.values + codes[j] * dim;
        if constexpr (fixed == 0) {
          for (int64_t i = 0; i < dim; i += kWidth) {
            auto sum = Part::load(centroid + i);
            for (int64_t m = 1; m < codebooks.codebooks; ++m) {
              sum += Part::load(codebooks.values + m * step + codes[m * codes_step + j] * dim + i);
            }
            Part::store(block + i, sum);
          }
        } else {
          typename Part::Vector sums[kWhole + 1];
          typename Tail::Vector tail = {};
#pragma GCC unroll 16
          for (int64_t v = 0; v < kWhole; ++v) sums[v] = Part::load(centroid + v * kWidth);
          if constexpr (kRest > 0) tail = Tail::load(centroid + kWhole * kWidth);
          for (int64_t m = 1; m < codebooks.codebooks; ++m) {
            centroid = codebooks.values + m * step + codes[m * codes_step + j] * dim;
#pragma GCC unroll 16
            for (int64_t v = 0; v < kWhole; ++v) sums[v] += Part::load(centroid + v * kWidth);
            if constexpr (kRest > 0) tail += Tail::load(centroid + kWhole * kWidth);
          }
#pragma GCC unroll 16
          for (int64_t v = 0; v < kWhole; ++v) Part::store(block + v * kWidth, sums[v]);
          if constexpr (kRest > 0) Tail::store(block + kWhole * kWidth, tail);
        }
      }
    }
  }

  static void decode_rows(const Codebooks& codebooks, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                          float* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
    const int64_t dim = codebooks.dim;
    const auto decode = dim == 1    ? &decode_blocks<1>
                        : dim == 2  ? &decode_blocks<2>
                        : dim == 4  ? &decode_blocks<4>
                        : dim == 8  ? &decode_blocks<8>
                        : dim == 9  ? &decode_blocks<9>
                        : dim == 16 ? &decode_blocks<16>
                        : dim == 18 ? &decode_blocks<18>
                        : dim == 36 ? &decode_blocks<36>
                                    : &decode_blocks<0>;
    decode(codebooks, codes, codes_step, code_pitch, out, out_pitch, rows, blocks);
  }

  // Compilers make vectors of this, given that bytes are not the floats that are written.
  static void decode_bytes(const int8_t* __restrict bytes, float unit, float* __restrict out, int64_t count) noexcept {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(bytes[i]) * unit;
  }

  static void dot_rows(const float* a, int64_t a_pitch, const float* x, int64_t x_pitch, float* out, int64_t out_pitch,
                       int64_t rows, int64_t columns, int64_t depth) noexcept {
    for (int64_t c = 0; c < columns; ++c, x += x_pitch) {
      VectorDot<Floats>::rows(a, a_pitch, x, depth, out + c, out_pitch, rows);
    }
  }

  // The inputs of a block stay in registers while all centroids pass by, `vectors` vectors of pixels at a time.
  template <int64_t dim, int64_t vectors>
  static void build_columns(const float* codebook, int64_t centroids, const float* panel, float* table) noexcept {
    Float inputs[dim][vectors];
#pragma GCC unroll 16
    for (int64_t i = 0; i < dim; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) inputs[i][v] = V::load(panel + i * kTablePixels + v * kLanes);
    }
    for (int64_t k = 0; k < centroids; ++k, codebook += dim, table += kTablePixels) {
      Float sums[vectors];
#pragma GCC unroll 16
      for (int64_t i = 0; i < dim; ++i) {
        const Float weight = V::broadcast(codebook[i]);
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) {
          sums[v] = i == 0 ? V::multiply(weight, inputs[i][v]) : V::multiply_add(weight, inputs[i][v], sums[v]);
        }
      }
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) V::store(table + v * kLanes, sums[v]);
    }
  }

  template <int64_t dim>
  static void build_resident(const float* codebook, int64_t centroids, const float* panel, int64_t pixels,
                             float* table) noexcept {
    constexpr int64_t most = V::kResidentVectors;
    const int64_t vectors = ceil_div(pixels, kLanes);
    int64_t v = 0;
    for (; v + most <= vectors; v += most) {
      build_columns<dim, most>(codebook, centroids, panel + v * kLanes, table + v * kLanes);
    }
    for (; v < vectors; ++v) build_columns<dim, 1>(codebook, centroids, panel + v * kLanes, table + v * kLanes);
  }

  // For blocks whose inputs are too many for the registers: kBuildRows centroids at a time instead.
  static constexpr int64_t kBuildRows = 4;
  template <int64_t rows>
  static void build_rows(const float* codebook, int64_t dim, const float* panel, int64_t vectors,
                         float* table) noexcept {
    for (int64_t v = 0; v < vectors; v += 2) {
      Float sums[rows][2];
#pragma GCC unroll 4
      for (int64_t r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = V::broadcast(0.0f);
      for (int64_t i = 0; i < dim; ++i) {
        const Float first = V::load(panel + i * kTablePixels + v * kLanes);
        const Float second = V::load(panel + i * kTablePixels + (v + 1) * kLanes);
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; ++r) {
          const Float weight = V::broadcast(codebook[r * dim + i]);
          sums[r][0] = V::multiply_add(weight, first, sums[r][0]);
          sums[r][1] = V::multiply_add(weight, second, sums[r][1]);
        }
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < rows; ++r) {
        V::store(table + r * kTablePixels + v * kLanes, sums[r][0]);
        V::store(table + r * kTablePixels + (v + 1) * kLanes, sums[r][1]);
      }
    }
  }

  static void table_build(const float* codebook, int64_t centroids, int64_t dim, const float* panel, int64_t pixels,
                          float* table) noexcept {
    switch (dim) {
      case 2:
        return build_resident<2>(codebook, centroids, panel, pixels, table);
      case 4:
        return build_resident<4>(codebook, centroids, panel, pixels, table);
      case 8:
        return build_resident<8>(codebook, centroids, panel, pixels, table);
      case 9:
        return build_resident<9>(codebook, centroids, panel, pixels, table);
    }
    const int64_t vectors = ceil_div(pixels, kLanes);
    int64_t k = 0;
    for (; k + kBuildRows <= centroids; k += kBuildRows) {
      build_rows<kBuildRows>(codebook + k * dim, dim, panel, vectors, table + k * kTablePixels);
    }
    for (; k < centroids; ++k) build_rows<1>(codebook + k * dim, dim, panel, vectors, table + k * kTablePixels);
  }

  // One look-up serves `vectors` loads; the sums of an output stay in registers for all positions.
  template <int64_t vectors>
  static void sum_rows(const uint16_t* at, int64_t positions, const float* tables, float* sums, int64_t outputs,
                       bool accumulate) noexcept {
    for (int64_t o = 0; o < outputs; ++o, at += positions, sums += kTablePixels) {
      Float sum[vectors];
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) sum[v] = accumulate ? V::load(sums + v * kLanes) : V::broadcast(0.0f);
      for_places(at, positions, [&](uint64_t place) __attribute__((always_inline)) {
        const float* row = tables + place * (kTableStep / sizeof(float));
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) sum[v] = V::add(sum[v], V::load(row + v * kLanes));
      });
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) V::store(sums + v * kLanes, sum[v]);
    }
  }

  using SumRowsFn = decltype(&sum_rows<1>);

  template <int64_t... vectors>
  static SumRowsFn sum_rows_for(int64_t wanted, std::integer_sequence<int64_t, vectors...>) noexcept {
    static constexpr SumRowsFn kWidths[] = {&sum_rows<vectors + 1>...};
    return kWidths[wanted - 1];
  }

  static void table_sum(const uint16_t* at, int64_t positions, const float* tables, float* sums, int64_t outputs,
                        int64_t pixels, bool accumulate) noexcept {
    const SumRowsFn sum = sum_rows_for(ceil_div(pixels, kLanes), std::make_integer_sequence<int64_t, kTableVectors>{});
    sum(at, positions, tables, sums, outputs, accumulate);
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

  static void max_row(const float* in, int64_t step, float* out, int64_t count) noexcept {
    int64_t p = 0;
    const auto inputs = [&](int64_t wanted) {
      if (step == 1) return V::load(in + p);
      const Float first = V::load(in + 2 * p);
      return V::split(first, 2 * wanted > kLanes ? V::load(in + 2 * p + kLanes) : first).first;
    };
    if (step <= 2) {
      for (; p + kLanes <= count; p += kLanes) V::store(out + p, V::max_or_nan(inputs(kLanes), V::load(out + p)));
      if (const int64_t rest = count - p; rest > 0) {
        V::store_first(out + p, rest, V::max_or_nan(inputs(rest), V::load_first(out + p, rest)));
      }
      return;
    }
    for (; p < count; ++p) {
      const float value = in[p * step];
      if (value > out[p] || std::isnan(value)) out[p] = value;
    }
  }

  // gemm_tile's sums, but no memory: what the arithmetic alone allows.
  static int64_t peak(int64_t steps, float* sink) noexcept {
    constexpr int64_t kSums = V::kRows * V::kVectors;
    Float sums[kSums];
    // No two alike, or the compiler would compute them once.
#pragma GCC unroll 32
    for (int64_t k = 0; k < kSums; ++k) sums[k] = V::broadcast(static_cast<float>(k));
    const Float factor = V::load(sink + kLanes);
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 32
      for (int64_t k = 0; k < kSums; ++k) sums[k] = V::multiply_add(factor, factor, sums[k]);
    }
#pragma GCC unroll 32
    for (int64_t k = 0; k < kSums; ++k) V::store(sink, V::add(V::load(sink), sums[k]));
    return kSums * kLanes;
  }

  static KernelTable improve(KernelTable table, const char* isa) noexcept {
    table.isa = isa;
    table.lanes = kLanes;
    table.tile = {.rows = V::kRows, .pixels = V::kVectors * kLanes, .least_vectors = V::kLeastVectors, .step_cost = 1};
    table.table_pixels = kTablePixels;
    table.pack_rows = &pack_rows;
    table.gemm_tile = &VectorGemm<Floats>::tile;
    table.decode_rows = &decode_rows;
    table.decode_bytes = &decode_bytes;
    table.dot_rows = &dot_rows;
    table.winograd2 = VectorWinograd<V, 2>::kernels();
    table.winograd4 = VectorWinograd<V, 4>::kernels();
    table.table_build = &table_build;
    table.table_sum = &table_sum;
    table.sparse_sum = &VectorSparse<Floats>::sum;
    table.finish_tile = &finish_tile;
    table.curves = VectorCurves<V>::kernels();
    table.max_row = &max_row;
    table.peak = &peak;
    table.matrix.tile.rows = 0;  // the reference's is no unit
    return table;
  }
};

}  // namespace pyquant

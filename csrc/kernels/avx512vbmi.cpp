// Built with AVX-512, VNNI and VBMI enabled; reached only through select_kernels().
//
// vpermb looks 64 bytes up in a register: four positions of 16 outputs, in the tables of one pixel. vpdpbusd multiplies
// the four with the scales of their tables and adds them, so that two instructions take the place of four positions'
// products. Tables of 32 entries are two in a register: of the quads that are looked up, each holds two positions of
// two outputs, and is multiplied twice, with zeros in place of the scales of one output or the other. Tables are made
// with centroids as lanes, for one pixel after the other: nothing has to be transposed.
//
// A bound is below 127 * 2^(shift + 7), so that a product, in steps of 2^(shift - 1), is below 127 * 2^8, and the 16
// bits that are taken of it are all. A sum of 131,586 positions, more than a row that fits has, is below 127 * 128 *
// 131,586 < 2^31.
#include "kernels/avx512vbmi.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "kernels/bytes16_x86.h"

namespace pyquant {
namespace {

constexpr int64_t kPixels = 16;  // whose tables are there at once
constexpr int64_t kPitch = kShuffledPixels;
constexpr int64_t kPixelsTogether = 4;  // whose tables meet the same places
constexpr int64_t kVectors = 4;         // of 16 outputs, likewise
constexpr int64_t kTables = ShuffledCodebooks::kShuffledBytes;

constexpr auto kFactors = [] {
  std::array<int32_t, kMostShuffledScale + 1> factors{};
  for (int32_t scale = 1; scale <= kMostShuffledScale; ++scale) factors[scale] = shuffled_factor(scale);
  return factors;
}();

// What is known of some pixels before their sums: [kPixels / kPixelsTogether, groups, kPixelsTogether] of each.
struct Tables {
  Tables(void* scratch, int64_t groups)
      : bytes(static_cast<uint8_t*>(scratch)),
        scales(reinterpret_cast<uint32_t*>(bytes + kPixels * groups * kTables)),
        later_scales(scales + kPixels * groups),
        factors01(later_scales + kPixels * groups),
        factors23(factors01 + kPixels * groups),
        offsets(reinterpret_cast<int32_t*>(factors23 + kPixels * groups)) {}

  uint8_t* bytes;
  uint32_t* scales;        // a byte for each position
  uint32_t* later_scales;  // of two positions: those bytes higher up, for the later of two outputs
  uint32_t* factors01;     // 16 bits for each of the first two sixteens of entries
  uint32_t* factors23;
  int32_t* offsets;  // [kPixels]: of the sums, for bytes of tables are entries + 128
};

// vpdpbusd, where the sums are. Compilers copy sums of the intrinsic from register to register, twice for each.
void multiply_add(__m512i& sums, __m512i bytes, __m512i scales) noexcept {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(scales));
}

// Call body(q, quarter) for each quarter of a register.
template <typename Body>
__attribute__((always_inline)) inline void for_quarters(__m512i v, const Body& body) noexcept {
  body(0, _mm512_castsi512_si128(v));
  body(1, _mm512_extracti32x4_epi32(v, 1));
  body(2, _mm512_extracti32x4_epi32(v, 2));
  body(3, _mm512_extracti32x4_epi32(v, 3));
}

// The first `count` quads of four, and zeros.
__m128i load_first(const uint32_t* p, int64_t count) noexcept {
  __m128i quads = _mm_setzero_si128();
  std::memcpy(&quads, p, count * sizeof *p);
  return quads;
}

// Where sums of 16 outputs at four pixels go: as they are, whatever those behind the last pixel hold.
struct SumsOut {
  int32_t* sums;

  template <int64_t pixels>
  void write(const __m512i* of, int64_t output, int64_t first_pixel) const noexcept {
    const __m512i low01 = _mm512_unpacklo_epi32(of[0], of[1]), high01 = _mm512_unpackhi_epi32(of[0], of[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(of[2], of[3]), high23 = _mm512_unpackhi_epi32(of[2], of[3]);
    // Of outputs 0, 4, 8 and 12, then 1, 5.. and so on, four pixels each.
    const __m512i outputs[4] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                                _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      int32_t* const to = sums + (output + i) * kPitch + first_pixel;
      for_quarters(outputs[i], [&](int64_t q, __m128i four) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * q * kPitch), four);
      });
    }
  }
};

// Finished as by finish_tile8, bit for bit. Packing leaves the bytes of four outputs and four pixels side by side.
struct BytesOut {
  const FinishedTile8& tile;

  template <int64_t pixels>
  void write(const __m512i* of, int64_t output, int64_t first_pixel) const noexcept {
    const int64_t quads = (tile.rows - output) / 4;  // that are left
    if (quads <= 0) return;
    const Finish8& finish = tile.finish;
    const int64_t at = output / 4 * tile.out_pitch + first_pixel;
    const __m512 scale = _mm512_loadu_ps(finish.scale + output), bias = _mm512_loadu_ps(finish.bias + output);
    __m512 values[kPixelsTogether];
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPixelsTogether; ++p) values[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(of[p]), scale, bias);
    if (finish.residual != nullptr) {
      const __m512 factor = _mm512_set1_ps(finish.residual_scale);
      const auto row = [&](int64_t q) {
        return q < quads ? load_first(finish.residual + at + q * tile.out_pitch, pixels) : __m128i{};
      };
      const __m512i before = _mm512_inserti32x4(
          _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1), row(2), 2), row(3), 3);
      // Bytes 0, 1, 2 and 3 of each quarter, then those of the second pixel..
      const __m512i bytes =
          _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1));
#pragma GCC unroll 4
      for (int p = 0; p < kPixelsTogether; ++p) {
        const __m512i these = _mm512_shuffle_epi8(before, _mm512_or_si512(bytes, _mm512_set1_epi32(4 * p)));
        values[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(these), factor, values[p]);
      }
    }
    __m512i rounded[kPixelsTogether];
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPixelsTogether; ++p) {
      // What is too large for an int becomes the least.
      const __m512 value = finish.plain ? values[p] : _mm512_min_ps(_mm512_set1_ps(255.0f), values[p]);
      rounded[p] = _mm512_cvtps_epi32(value);
    }
    __m512i out =
        _mm512_packus_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), _mm512_packs_epi32(rounded[2], rounded[3]));
    if (!finish.plain) {
      out = _mm512_max_epu8(_mm512_set1_epi8(static_cast<char>(finish.low)),
                            _mm512_min_epu8(_mm512_set1_epi8(static_cast<char>(finish.high)), out));
    }
    for_quarters(out, [&](int64_t q, __m128i four) {
      // Not masked: compilers would join that to the extraction, which then touches the memory of all four.
      if (q < quads) X86Bytes16::store_first(tile.out + at + q * tile.out_pitch, pixels, four);
    });
  }
};

template <int64_t entries, int64_t codebooks, int64_t dim>
struct Builder {
  static constexpr int64_t kTogether = kTables / entries;
  static constexpr int64_t kSixteens = entries / 16;  // of a table

  const ShuffledCodebooks& books;
  const uint32_t* panel;
  uint32_t zeros;

  // The inputs of a block; of one behind the last, whose factors are zero, any.
  const uint32_t* inputs(int64_t block) const { return panel + (block < books.blocks ? block * dim * kPitch : 0); }

  // Lanes are pixels.
  void write_scales(const Tables& tables) const noexcept {
    const int64_t groups = books.groups();
    const __m128i shift = _mm_cvtsi64_si128(books.shift + 7);
    const __m512i zero = _mm512_set1_epi32(static_cast<int>(zeros));
    __m512i sum = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; ++g) {
      __m512i scales[kTogether], factors[kTogether];
#pragma GCC unroll 4
      for (int64_t first = 0; first < kTogether; first += codebooks) {
        const int64_t block = (kTogether * g + first) / codebooks;
        const bool exists = block < books.blocks;
        const uint32_t* const rows = inputs(block);
        __m512i distances[dim];
#pragma GCC unroll 8
        for (int64_t d = 0; d < dim; ++d) {
          const __m512i x = _mm512_loadu_si512(rows + d * kPitch);
          distances[d] = _mm512_or_si512(_mm512_subs_epu8(x, zero), _mm512_subs_epu8(zero, x));
        }
#pragma GCC unroll 4
        for (int64_t m = 0; m < codebooks; ++m) {
          const int64_t i = first + m;
          const __m512i scale = _mm512_add_epi32(_mm512_srl_epi32(bound(distances, m), shift), _mm512_set1_epi32(1));
          scales[i] = exists ? scale : _mm512_setzero_si512();
          factors[i] = _mm512_i32gather_epi32(scales[i], kFactors.data(), 4);
          sum = _mm512_add_epi32(sum, scales[i]);
        }
      }
      const auto joined = [](__m512i low, __m512i high, int bits) {
        return _mm512_or_si512(low, _mm512_slli_epi32(high, bits));
      };
      if constexpr (kTogether == 4) {
        write(joined(joined(scales[0], scales[1], 8), joined(scales[2], scales[3], 8), 16), tables.scales, g);
      } else {
        const __m512i both = joined(scales[0], scales[1], 8);
        write(both, tables.scales, g);
        write(_mm512_slli_epi32(both, 16), tables.later_scales, g);
      }
      write(joined(factors[0], factors[1 / kSixteens], 16), tables.factors01, g);
      write(joined(factors[2 / kSixteens], factors[3 / kSixteens], 16), tables.factors23, g);
    }
    _mm512_storeu_si512(tables.offsets, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
  }

  // Of the products with the centroids of a codebook.
  __attribute__((always_inline)) __m512i bound(const __m512i (&distances)[dim], int64_t m) const noexcept {
    constexpr int64_t kFamilies = ShuffledCodebooks::families_of(entries);
    const uint32_t* bounds = books.bounds + m * kFamilies * dim;
    __m512i most = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int64_t f = 0; f < kFamilies; ++f, bounds += dim) {
      __m512i of_family = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int64_t d = 0; d < dim; ++d) {
        of_family = _mm512_dpbusd_epi32(of_family, distances[d], _mm512_set1_epi32(static_cast<int>(bounds[d])));
      }
      most = _mm512_max_epi32(most, of_family);
    }
    return most;
  }

  void write(__m512i of_pixels, uint32_t* to, int64_t g) const noexcept {
    const int64_t step = books.groups() * kPixelsTogether;
    to += g * kPixelsTogether;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(of_pixels));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + step), _mm512_extracti32x4_epi32(of_pixels, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * step), _mm512_extracti32x4_epi32(of_pixels, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * step), _mm512_extracti32x4_epi32(of_pixels, 3));
  }

  // Lanes are centroids.
  void write_tables(const Tables& tables, int64_t pixels) const noexcept {
    const int64_t groups = books.groups();
    constexpr int64_t kVectorsOfBooks = codebooks * kSixteens;
    __m512i quads[kVectorsOfBooks][dim];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectorsOfBooks; ++v) {
#pragma GCC unroll 8
      for (int64_t d = 0; d < dim; ++d) {
        quads[v][d] = _mm512_loadu_si512(books.quads + (v / kSixteens * dim + d) * entries + v % kSixteens * 16);
      }
    }
    __m512i start[kVectorsOfBooks];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectorsOfBooks; ++v) {
      const __m512i zero = _mm512_set1_epi32(static_cast<int>(zeros));
      __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int64_t d = 0; d < dim; ++d) products = _mm512_dpbusd_epi32(products, zero, quads[v][d]);
      start[v] = _mm512_sub_epi32(_mm512_set1_epi32((1 << (books.shift - 1)) / 2), products);
    }
    const __m512i down = _mm512_set1_epi32(static_cast<int>(books.shift - 1));
    const __m512i up = _mm512_set1_epi32(static_cast<int>(16 - (books.shift - 1)));
    const __m512i sign = _mm512_set1_epi8(-128);
    constexpr __mmask32 kOdd = 0xaaaaaaaa;
    // 16 bits of two products side by side, from the bit on that counts.
    const auto pair = [&](__m512i even, __m512i odd) {
      return _mm512_mask_blend_epi16(kOdd, _mm512_srlv_epi32(even, down), _mm512_sllv_epi32(odd, up));
    };
    const auto factors = [](uint32_t both) { return _mm512_set1_epi32(static_cast<int>(both)); };
    for (int64_t g = 0; g < groups; ++g) {
      const uint32_t* rows[kTogether];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kTogether; i += codebooks) rows[i] = inputs((kTogether * g + i) / codebooks);
      for (int64_t p = 0; p < pixels; ++p) {
        __m512i products[4];
#pragma GCC unroll 4
        for (int64_t first = 0; first < 4; first += kVectorsOfBooks) {
#pragma GCC unroll 4
          for (int64_t v = 0; v < kVectorsOfBooks; ++v) products[first + v] = start[v];
#pragma GCC unroll 8
          for (int64_t d = 0; d < dim; ++d) {
            const __m512i input = _mm512_set1_epi32(static_cast<int>(rows[first / kSixteens][d * kPitch + p]));
#pragma GCC unroll 4
            for (int64_t v = 0; v < kVectorsOfBooks; ++v) {
              products[first + v] = _mm512_dpbusd_epi32(products[first + v], input, quads[v][d]);
            }
          }
        }
        const int64_t at = (p / kPixelsTogether * groups + g) * kPixelsTogether + p % kPixelsTogether;
        const __m512i first = _mm512_mulhrs_epi16(pair(products[0], products[1]), factors(tables.factors01[at]));
        const __m512i second = _mm512_mulhrs_epi16(pair(products[2], products[3]), factors(tables.factors23[at]));
        _mm512_storeu_si512(tables.bytes + at * kTables, _mm512_xor_si512(_mm512_packs_epi16(first, second), sign));
      }
    }
  }
};

// The sums [vectors, kPixelsTogether] of some pixels and vectors of outputs; those behind the last pixel are not
// defined. Registers are given to this loop by itself: together with what follows, compilers leave its sums in memory.
template <int64_t entries, int64_t vectors, int64_t pixels>
__attribute__((noinline)) void sum(const Tables& tables, int64_t groups, const uint8_t* places, int64_t first_pixel,
                                   __m512i* out) noexcept {
  constexpr int64_t kSixteens = entries / 16;  // of outputs whose places lie side by side
  __m512i sums[vectors][kPixelsTogether];
#pragma GCC unroll 4
  for (int64_t v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPixelsTogether; ++p) sums[v][p] = _mm512_set1_epi32(tables.offsets[first_pixel + p]);
  }
  const int64_t at = first_pixel * groups;
  const uint8_t* bytes = tables.bytes + at * kTables;
  const uint32_t* scales[] = {tables.scales + at, tables.later_scales + at};
  for (int64_t g = 0; g < groups; ++g, bytes += kPixelsTogether * kTables) {
    __m512i tables_of[pixels], scales_of[kSixteens][pixels];
#pragma GCC unroll 4
    for (int64_t p = 0; p < pixels; ++p) {
      tables_of[p] = _mm512_loadu_si512(bytes + p * kTables);
#pragma GCC unroll 2
      for (int64_t s = 0; s < kSixteens; ++s) {
        scales_of[s][p] = _mm512_set1_epi32(static_cast<int>(scales[s][g * kPixelsTogether + p]));
      }
    }
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; v += kSixteens) {
      const __m512i of_outputs = _mm512_loadu_si512(places + (v / kSixteens * groups + g) * kTables);
#pragma GCC unroll 4
      for (int64_t p = 0; p < pixels; ++p) {
        const __m512i found = _mm512_permutexvar_epi8(of_outputs, tables_of[p]);
#pragma GCC unroll 2
        for (int64_t s = 0; s < kSixteens; ++s) {
          multiply_add(sums[v + s][p], found, scales_of[s][p]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPixelsTogether; ++p) _mm512_storeu_si512(out + v * kPixelsTogether + p, sums[v][p]);
  }
}

template <int64_t entries, int64_t pixels, typename Out>
void sum_all(const Tables& tables, int64_t groups, const uint8_t* places, int64_t outputs, int64_t first_pixel,
             int64_t out_pixel, const Out& out) noexcept {
  constexpr int64_t kLeast = entries / 16;  // vectors
  __m512i sums[kVectors][kPixelsTogether];
  for (int64_t o = 0, vectors = kVectors; o < outputs; o += 16 * vectors) {
    vectors = o + 16 * kVectors <= outputs ? kVectors : kLeast;
    const auto sum_some = vectors == kVectors ? &sum<entries, kVectors, pixels> : &sum<entries, kLeast, pixels>;
    sum_some(tables, groups, places + o * groups * (kTables / entries), first_pixel, sums[0]);
    for (int64_t v = 0; v < vectors; ++v) out.template write<pixels>(sums[v], o + 16 * v, out_pixel);
  }
}

template <int64_t entries, int64_t codebooks, int64_t dim>
void build(const ShuffledCodebooks& books, const uint32_t* panel, uint32_t zeros, int64_t pixels,
           const Tables& tables) noexcept {
  const Builder<entries, codebooks, dim> builder{books, panel, zeros};
  builder.write_scales(tables);
  builder.write_tables(tables, pixels);
}

using BuildFn = decltype(&build<16, 1, 1>);
template <typename Out>
using SumFn = decltype(&sum_all<16, 1, Out>);

template <int64_t entries, int64_t codebooks>
BuildFn build_for(int64_t dim) noexcept {
  static_assert(kMostShuffledQuads == 6);
  static constexpr BuildFn kDims[] = {&build<entries, codebooks, 1>, &build<entries, codebooks, 2>,
                                      &build<entries, codebooks, 3>, &build<entries, codebooks, 4>,
                                      &build<entries, codebooks, 5>, &build<entries, codebooks, 6>};
  return kDims[dim - 1];
}

template <typename Out, int64_t entries>
SumFn<Out> sum_for(int64_t pixels) noexcept {
  static_assert(kPixelsTogether == 4);
  static constexpr SumFn<Out> kCounts[] = {&sum_all<entries, 1, Out>, &sum_all<entries, 2, Out>,
                                           &sum_all<entries, 3, Out>, &sum_all<entries, 4, Out>};
  return kCounts[pixels - 1];
}

template <typename Out>
void shuffle_to(const Out& out, const ShuffledCodebooks& books, const uint8_t* places, int64_t outputs,
                const uint32_t* panel, uint32_t zeros, int64_t all_pixels, void* scratch) noexcept {
  const int64_t groups = books.groups();
  const Tables tables(scratch, groups);
  const bool is_small = books.entries == 16;
  const BuildFn write = books.codebooks == 1   ? is_small ? build_for<16, 1>(books.dim) : build_for<32, 1>(books.dim)
                        : books.codebooks == 2 ? is_small ? build_for<16, 2>(books.dim) : build_for<32, 2>(books.dim)
                                               : build_for<16, 4>(books.dim);
  for (int64_t from = 0; from < all_pixels; from += kPixels) {
    const int64_t pixels = std::min(kPixels, all_pixels - from);
    write(books, panel + from, zeros, pixels, tables);
    for (int64_t p = 0; p < pixels; p += kPixelsTogether) {
      const int64_t together = std::min(kPixelsTogether, pixels - p);
      const SumFn<Out> sum_up = is_small ? sum_for<Out, 16>(together) : sum_for<Out, 32>(together);
      sum_up(tables, groups, places, outputs, p, from + p, out);
    }
  }
}

void shuffle_tile8(const ShuffledCodebooks& books, const uint8_t* places, int64_t outputs, const uint32_t* panel,
                   uint32_t zeros, int64_t pixels, void* scratch, int32_t* out, const FinishedTile8* tile) noexcept {
  if (tile == nullptr) return shuffle_to(SumsOut{out}, books, places, outputs, panel, zeros, pixels, scratch);
  shuffle_to(BytesOut{*tile}, books, places, outputs, panel, zeros, pixels, scratch);
}

}  // namespace

KernelTable improve_with_avx512vbmi(KernelTable table) {
  table.isa = "avx512vbmi";
  table.shuffles = true;
  table.shuffle_tile8 = &shuffle_tile8;
  return table;
}

}  // namespace pyquant

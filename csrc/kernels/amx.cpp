// Built with AMX enabled; reached only through select_kernels().
//
// A register tile has 16 rows of 64 bytes: 16 outputs with 64 weights each (32 where they are pieces of floats), 16
// quads or pairs of inputs of 16 pixels, or sums of 16 outputs and 16 pixels. Four hold the sums of 32 outputs and 32
// pixels, so that a step loads four and multiplies four times; a product takes twice as long as a load whose rows lie
// in one cache line each.
#include "kernels/amx.h"

#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>

namespace pyquant {
namespace {

constexpr int64_t kSide = 16;  // rows of a register tile, and values of four bytes in each

// Of Linux's arch_prctl: asks for registers that a process has to ask for, and their number.
[[maybe_unused]] constexpr long kRequestPermission = 0x1023;
[[maybe_unused]] constexpr long kTileData = 18;

struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide};
};

void begin_tiles() noexcept {
  static constexpr TileConfiguration kAllTiles;
  _tile_loadconfig(&kAllTiles);
}

void end_tiles() noexcept { _tile_release(); }

// Of all kernels here: sums of the first and second 16 outputs are tiles 0, 1 and 2, 3; their weights tiles 4 and 5;
// inputs tiles 6 and 7.
template <bool two_rows, bool two_columns>
void zero_sums() noexcept {
  _tile_zero(0);
  if constexpr (two_columns) _tile_zero(1);
  if constexpr (two_rows) _tile_zero(2);
  if constexpr (two_rows && two_columns) _tile_zero(3);
}

template <bool two_rows, bool two_columns, typename Sum>
void store_sums(Sum* out, int64_t out_pitch) noexcept {
  const int64_t bytes = out_pitch * 4;
  _tile_stored(0, out, bytes);
  if constexpr (two_columns) _tile_stored(1, out + kSide, bytes);
  if constexpr (two_rows) _tile_stored(2, out + kSide * out_pitch, bytes);
  if constexpr (two_rows && two_columns) _tile_stored(3, out + kSide * out_pitch + kSide, bytes);
}

template <bool two_rows, bool two_columns>
void multiply_bytes(const uint32_t* weights, int64_t weights_pitch, const uint32_t* panel, int64_t panel_pitch,
                    const int32_t* at, int64_t steps, int32_t* out, int64_t out_pitch) noexcept {
  const int64_t weights_bytes = weights_pitch * 4, panel_bytes = panel_pitch * 4;
  zero_sums<two_rows, two_columns>();
  for (int64_t s = 0; s < steps; ++s, weights += kSide) {
    const uint32_t* const inputs = panel + at[s];
    _tile_loadd(4, weights, weights_bytes);
    _tile_loadd(6, inputs, panel_bytes);
    _tile_dpbsud(0, 4, 6);
    if constexpr (two_columns) {
      _tile_loadd(7, inputs + kSide, panel_bytes);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (two_rows) {
      _tile_loadd(5, weights + kSide * weights_pitch, weights_bytes);
      _tile_dpbsud(2, 5, 6);
    }
    if constexpr (two_rows && two_columns) _tile_dpbsud(3, 5, 7);
  }
  store_sums<two_rows, two_columns>(out, out_pitch);
}

void matrix_tile8(const uint32_t* weights, int64_t weights_pitch, const uint32_t* panel, int64_t panel_pitch,
                  const int32_t* at, int64_t steps, int32_t* out, int64_t out_pitch, int64_t rows,
                  int64_t pixels) noexcept {
  const auto run = rows > kSide ? (pixels > kSide ? &multiply_bytes<true, true> : &multiply_bytes<true, false>)
                                : (pixels > kSide ? &multiply_bytes<false, true> : &multiply_bytes<false, false>);
  run(weights, weights_pitch, panel, panel_pitch, at, steps, out, out_pitch);
}

// Pieces are loaded in an order in which two products have one of their operands in common.
template <bool two_rows, bool two_columns>
void multiply_pieces(const uint32_t* weights, int64_t weights_pitch, int64_t weights_piece, int64_t weight_pieces,
                     const uint32_t* inputs, int64_t inputs_pitch, int64_t inputs_piece, int64_t steps, float* out,
                     int64_t out_pitch) noexcept {
  const int64_t weights_bytes = weights_pitch * 4, inputs_bytes = inputs_pitch * 4;
  zero_sums<two_rows, two_columns>();
  for (int64_t s = 0; s < steps; ++s, weights += kSide, inputs += kSide * inputs_pitch) {
    const auto load_weights = [&](int64_t piece) __attribute__((always_inline)) {
      _tile_loadd(4, weights + piece * weights_piece, weights_bytes);
      if constexpr (two_rows) _tile_loadd(5, weights + piece * weights_piece + kSide * weights_pitch, weights_bytes);
    };
    const auto load_inputs = [&](int64_t piece) __attribute__((always_inline)) {
      _tile_loadd(6, inputs + piece * inputs_piece, inputs_bytes);
      if constexpr (two_columns) _tile_loadd(7, inputs + piece * inputs_piece + kSide, inputs_bytes);
    };
    const auto multiply = [&]() __attribute__((always_inline)) {
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (two_columns) _tile_dpbf16ps(1, 4, 7);
      if constexpr (two_rows) _tile_dpbf16ps(2, 5, 6);
      if constexpr (two_rows && two_columns) _tile_dpbf16ps(3, 5, 7);
    };
    load_weights(0);
    load_inputs(2);
    multiply();
    if (weight_pieces == 1) {
      load_inputs(1);
      multiply();
      load_inputs(0);
      multiply();
      continue;
    }
    load_inputs(0);
    multiply();
    if (weight_pieces == kPieces) {
      load_weights(2);
      multiply();
    }
    load_weights(1);
    multiply();
    load_inputs(1);
    multiply();
    load_weights(0);
    multiply();
  }
  store_sums<two_rows, two_columns>(out, out_pitch);
}

void matrix_tile(const uint32_t* weights, int64_t weights_pitch, int64_t weights_piece, int64_t weight_pieces,
                 const uint32_t* inputs, int64_t inputs_pitch, int64_t inputs_piece, int64_t steps, float* out,
                 int64_t out_pitch, int64_t rows, int64_t pixels) noexcept {
  const auto run = rows > kSide ? (pixels > kSide ? &multiply_pieces<true, true> : &multiply_pieces<true, false>)
                                : (pixels > kSide ? &multiply_pieces<false, true> : &multiply_pieces<false, false>);
  run(weights, weights_pitch, weights_piece, weight_pieces, inputs, inputs_pitch, inputs_piece, steps, out, out_pitch);
}

// Take the first piece of each value away from `rest`, and return it in the upper half.
__m512i take_piece(__m512& rest) {
  const __m512i piece = _mm512_and_si512(_mm512_castps_si512(rest), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(piece));
  return piece;
}

void split(const float* in, int64_t in_pitch, int64_t rows, int64_t pixels, uint32_t* out, int64_t out_pitch,
           int64_t piece_pitch) noexcept {
  for (int64_t k = 0; k < rows / 2; ++k, in += 2 * in_pitch, out += out_pitch) {
    for (int64_t p = 0; p < pixels; p += kSide) {
      __m512 even = _mm512_loadu_ps(in + p), odd = _mm512_loadu_ps(in + in_pitch + p);
      // Rows may lie pages apart: the next tile will need what is behind this one.
      _mm_prefetch(in + p + 2 * kSide, _MM_HINT_T0);
      _mm_prefetch(in + in_pitch + p + 2 * kSide, _MM_HINT_T0);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kPieces; ++i) {
        const __m512i low = _mm512_srli_epi32(take_piece(even), 16);
        _mm512_storeu_si512(out + i * piece_pitch + p, _mm512_or_si512(low, take_piece(odd)));
      }
    }
  }
}

// Where processors have AMX, gathering takes a third of the time of single loads.
template <int64_t dim>
void gather_blocks(const uint16_t* codes, const uint32_t* codebook, uint32_t* out, int64_t blocks) noexcept {
  constexpr int64_t kBlocks = kSide / dim;
  int64_t j = 0;
  for (; j + kBlocks <= blocks; j += kBlocks) {
    __m512i quads;
    if constexpr (dim == 1) {
      const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + j));
      quads = _mm512_i32gather_epi32(_mm512_cvtepu16_epi32(at), codebook, 4);
    } else {
      const __m128i at = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + j));
      quads = _mm512_i32gather_epi64(_mm256_cvtepu16_epi32(at), codebook, 4);
    }
    _mm512_storeu_si512(out + j * dim, quads);
  }
  for (; j < blocks; ++j) std::copy_n(codebook + codes[j], dim, out + j * dim);
}

// Larger blocks are copied, one after the other; `fixed` is a dim known to the compiler, or 0.
template <int64_t fixed>
void copy_blocks(const uint16_t* codes, const uint32_t* codebook, int64_t any_dim, uint32_t* out,
                 int64_t blocks) noexcept {
  const int64_t dim = fixed > 0 ? fixed : any_dim;
  for (int64_t j = 0; j < blocks; ++j) std::memcpy(out + j * dim, codebook + codes[j], dim * sizeof(uint32_t));
}

void decode_words(const uint16_t* codes, int64_t code_pitch, const uint32_t* codebook, int64_t dim, uint32_t* out,
                  int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
  for (int64_t r = 0; r < rows; ++r, codes += code_pitch, out += out_pitch) {
    if (dim == 1) {
      gather_blocks<1>(codes, codebook, out, blocks);
    } else if (dim == 2) {
      gather_blocks<2>(codes, codebook, out, blocks);
    } else if (dim == 4) {
      copy_blocks<4>(codes, codebook, dim, out, blocks);
    } else if (dim == 8) {
      copy_blocks<8>(codes, codebook, dim, out, blocks);
    } else {
      copy_blocks<0>(codes, codebook, dim, out, blocks);
    }
  }
}

void decode_pairs(const int8_t* bytes, uint32_t* out, int64_t pairs) noexcept {
  for (int64_t k = 0; k < pairs; k += kSide) {
    const auto here = static_cast<__mmask16>(pairs - k < kSide ? (1u << (pairs - k)) - 1 : 0xffffu);
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 2 * k)));
    const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(words, 24), 24);
    const __m512i second = _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 24);
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(first)), 16);
    _mm512_mask_storeu_epi32(out + k, here, _mm512_or_si512(low, _mm512_castps_si512(_mm512_cvtepi32_ps(second))));
  }
}

}  // namespace

bool runs_amx() {
#if defined(__linux__)
  constexpr unsigned kFeatures = 1u << 22 | 1u << 24 | 1u << 25;  // products of bfloat16, tiles, products of bytes
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kFeatures) == kFeatures &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

KernelTable improve_with_amx(KernelTable table) {
  table.isa = "amx";
  constexpr Tile kTile = {.rows = 2 * kSide, .pixels = 2 * kSide, .least_vectors = 1.0, .step_cost = 1.0};
  table.matrix = {.begin = &begin_tiles,
                  .end = &end_tiles,
                  .decode_words = &decode_words,
                  .decode_pairs = &decode_pairs,
                  .tile = kTile,
                  .split = &split,
                  .multiply = &matrix_tile,
                  .tile8 = kTile,
                  .multiply8 = &matrix_tile8};
  table.matrix.tile.step_cost = 0.4;
  table.matrix.tile8.step_cost = 0.16;
  return table;
}

}  // namespace pyquant

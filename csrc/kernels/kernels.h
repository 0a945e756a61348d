// The contract of all kernels, and the table of function pointers through which they are reached.
//
// Dimensions: O outputs (rows) · D depth, the unfolded inputs of an output (J * d) · P pixels, the vector lanes ·
//             K centroids · d weights of a block · J blocks per output row
//
// A convolution is computed on tiles of pixels. The inputs of a tile are laid out as a panel [D][pitch]: row k holds,
// for each pixel, the k-th weight's input, in the order in which a codec stores weights. Two ways lead from there to
// outputs:
//
//   decode    decode_rows() writes the weights of a few outputs as a matrix [rows][D]; gemm_tile() multiplies.
//   table     gemm_tile() multiplies the codebook with the d panel rows of a block: table [K][P]; table_sum() adds,
//             for each output, the table row that its code names. d multiply-adds become one load-and-add.
//
// Kernels neither allocate, throw, lock nor read globals. They load and store whole vectors: arrays need kSlackBytes of
// readable (outputs: writable) memory behind them. Results of one table are the same bits for any split of the work.
#pragma once

#include <cstdint>

namespace pyquant {

// out[r][p] = sum over k < depth of a[r][k] * b[k][p], in order of k.
//   a    [rows, a_pitch]     1 <= rows <= tile_rows
//   b    [depth, b_pitch]    1 <= pixels <= tile_pixels; vectors of lanes are read up to the next multiple of lanes
//   out  [rows, out_pitch]   written up to the next multiple of lanes
using GemmTileFn = void (*)(const float* a, int64_t a_pitch, const float* b, int64_t b_pitch, float* out,
                            int64_t out_pitch, int64_t rows, int64_t pixels, int64_t depth) noexcept;

// out[r][j * dim ..] = codebook[codes[r][j]] for rows r < rows and blocks j < blocks; added to out if `accumulate`.
//   codes     [rows, code_pitch], each < K
//   codebook  [K, dim]
//   out       [rows, out_pitch], rows in ascending order may be written beyond their blocks * dim values
using DecodeRowsFn = void (*)(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                              int64_t out_pitch, int64_t rows, int64_t blocks, bool accumulate) noexcept;

// How many blocks table_sum() adds in one pass over the sums.
constexpr int64_t kBlocksPerPass = 4;

// sums[o][p] += sum over b < kBlocksPerPass of table[b][codes[o][b]][p], in order of b, for p < table_pixels.
//   codes  [outputs, kBlocksPerPass], each < K
//   table  [kBlocksPerPass, K, table_pixels]      block_stride = K * table_pixels
//   sums   [outputs, table_pixels]
// All float pointers are aligned to a vector.
using TableSumFn = void (*)(const uint16_t* codes, const float* table, int64_t block_stride, float* sums,
                            int64_t outputs) noexcept;

// out[r][p] = min(max(in[r][p] * scale[r] + bias[r] + residual[r][p], low), high) for r < rows, p < count; NaN stays
// NaN.
//   in        [rows, in_pitch]
//   residual  [rows, out_pitch], or null
//   out       [rows, out_pitch]   nothing behind the count of a row is read or written
using FinishTileFn = void (*)(const float* in, int64_t in_pitch, const float* scale, const float* bias,
                              const float* residual, float low, float high, float* out, int64_t out_pitch, int64_t rows,
                              int64_t count) noexcept;

// Multiply-add registers with each other, `steps` times, without touching memory; returns the multiply-adds per step.
using PeakFn = int64_t (*)(int64_t steps, float* sink) noexcept;

// No table's tile_pixels and table_pixels are larger: callers keep arrays of this size.
constexpr int64_t kMostTilePixels = 64;

struct KernelTable {
  const char* isa;
  int64_t lanes;         // fp32 values of a vector
  int64_t tile_rows;     // outputs that gemm_tile computes at most in one call
  int64_t tile_pixels;   // pixels that it computes at most in one call, a multiple of lanes
  int64_t table_pixels;  // pixels of a table row
  GemmTileFn gemm_tile;
  DecodeRowsFn decode_rows;
  TableSumFn table_sum;
  FinishTileFn finish_tile;
  PeakFn peak;
};

}  // namespace pyquant

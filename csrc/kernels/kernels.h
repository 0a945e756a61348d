// The contract of all kernels, and the table of function pointers through which they are reached.
//
// Dimensions: O outputs (rows) · D depth, the unfolded inputs of an output (J * d) · P pixels, the vector lanes ·
//             K centroids · d weights of a block · J blocks per output row
//
// A convolution is computed on tiles of pixels. The inputs of a tile are laid out as a panel [D][pitch]: row k holds,
// for each pixel, the k-th weight's input, in the order in which a codec stores weights. Ways lead from there to
// outputs:
//
//   direct    gemm_tile() multiplies: it finds each weight in the codebook, by way of its block's code.
//   winograd  the same for each frequency of F(2x2, 3x3) or F(4x4, 3x3), with the codebook transformed instead of
//             the weights.
//   table     table_build() multiplies the codebook with the d panel rows of a block: table [K][P]; table_sum() adds,
//             for each output, the table row that its code names. d multiply-adds become one load-and-add.
//   dot       where there are few pixels, each with its inputs side by side: decode_rows() writes the weights of some
//             outputs, dot_rows() multiplies, and the lanes are inputs.
//
// Kernels neither allocate, throw, lock nor read globals. They load and store whole vectors: arrays need kSlackBytes of
// readable (outputs: writable) memory behind them. Results of one table are the same bits for any split of the work.
#pragma once

#include <cstdint>

namespace pyquant {

// Pixels [to, to + size) of a panel row are read from `from` on, every `step`-th float of the input, or are zero.
struct PanelRun {
  int64_t to;
  int64_t size;
  int64_t from;
  static constexpr int64_t kZero = -1;
};

// A row of a panel and the input channel that it is read from.
struct PanelRow {
  int64_t row;
  int64_t channel;
};

// panel[rows.row][run.to + i] = in[rows.channel * plane + run.from + i * step] for each row, each run and i < run.size.
// Nothing else is written.
using PackRowsFn = void (*)(const PanelRun* runs, int64_t num_runs, int64_t step, const float* in, int64_t plane,
                            const PanelRow* rows, int64_t num_rows, float* panel, int64_t pitch) noexcept;

// out[r][p] = sum over j < blocks, i < dim of codebook[codes[j][r]][i] * panel[j * dim + i][p], in this order.
//   codes     [blocks, tile_rows], each < K: the output rows' codes side by side
//   codebook  [K, dim]
//   panel     [blocks * dim, pitch]   1 <= pixels <= tile_pixels; half vectors are read up to the next multiple
//   out       [tile_rows, out_pitch]  whole vectors are written
// A matrix [tile_rows, depth] is a codebook of one block, with codes 0, 1, 2...
using GemmTileFn = void (*)(const uint16_t* codes, const float* codebook, int64_t dim, int64_t blocks,
                            const float* panel, int64_t pitch, float* out, int64_t out_pitch, int64_t pixels) noexcept;

// out[r][j * dim ..] = codebook[codes[r][j]] for rows r < rows and blocks j < blocks; added to out if `accumulate`.
//   codes     [rows, code_pitch], each < K
//   codebook  [K, dim]
//   out       [rows, out_pitch], rows in ascending order may be written beyond their blocks * dim values
using DecodeRowsFn = void (*)(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                              int64_t out_pitch, int64_t rows, int64_t blocks, bool accumulate) noexcept;

// out[r][c] = sum over k < depth of a[r][k] * x[c][k], for r < rows, c < columns.
//   a    [rows, a_pitch]
//   x    [columns, x_pitch]
//   out  [rows, out_pitch]
using DotRowsFn = void (*)(const float* a, int64_t a_pitch, const float* x, int64_t x_pitch, float* out,
                           int64_t out_pitch, int64_t rows, int64_t columns, int64_t depth) noexcept;

// The inputs of Winograd's F(m x m, 3 x 3), see winograd.h: out[y * (m + 2) + x][t] = (input · d · inputᵀ)[y][x] of the
// (m + 2) x (m + 2) inputs d of tile t. Row y of d is columns m * t .. m * t + m - 1 of line y, then columns m * t and
// m * t + 1 of next line y.
//   lines, next_lines  [m + 2, line_pitch]
//   out                [(m + 2)², out_pitch], whole vectors are written
using WinogradInputFn = void (*)(const float* lines, const float* next_lines, int64_t line_pitch, int64_t tiles,
                                 float* out, int64_t out_pitch) noexcept;

// Its outputs: columns m * t .. m * t + m - 1 of line y are row y of output · p · outputᵀ, p[y][x] = in[y * (m + 2) +
// x][t].
//   in     [(m + 2)², in_pitch]
//   lines  m rows, line_pitch apart; m vectors are written for each vector of tiles
using WinogradOutputFn = void (*)(const float* in, int64_t in_pitch, int64_t tiles, float* lines,
                                  int64_t line_pitch) noexcept;

struct WinogradKernels {
  WinogradInputFn input;
  WinogradOutputFn output;
};

// table[k][p] = sum over i < dim of codebook[k][i] * panel[i][p], in order of i.
//   codebook  [centroids, dim]
//   panel     [dim, table_pixels]
//   table     [centroids, table_pixels]    1 <= pixels <= table_pixels; pairs of vectors are written
// Panel and table are aligned to a vector.
using TableBuildFn = void (*)(const float* codebook, int64_t centroids, int64_t dim, const float* panel, int64_t pixels,
                              float* table) noexcept;

// sums[o][p] = sum over q < positions of tables[q][codes[o][q]][p], in order of q; added to sums if `accumulate`.
//   codes   [outputs, positions], each < K
//   tables  [positions, K, table_pixels]
//   sums    [outputs, table_pixels]        pixels as above
// Tables and sums are aligned to a vector.
using TableSumFn = void (*)(const uint16_t* codes, int64_t positions, const float* tables, int64_t centroids,
                            float* sums, int64_t outputs, int64_t pixels, bool accumulate) noexcept;

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
  int64_t tile_rows;     // outputs that gemm_tile computes in one call
  int64_t tile_pixels;   // pixels that it computes at most in one call, a multiple of lanes
  double least_vectors;  // a tile narrower than so many vectors is no faster: loads of weights bound it
  int64_t table_pixels;  // pixels of a table row
  PackRowsFn pack_rows;
  GemmTileFn gemm_tile;
  DecodeRowsFn decode_rows;
  DotRowsFn dot_rows;
  WinogradKernels winograd2;  // m = 2
  WinogradKernels winograd4;  // m = 4
  TableBuildFn table_build;
  TableSumFn table_sum;
  FinishTileFn finish_tile;
  PeakFn peak;
};

}  // namespace pyquant

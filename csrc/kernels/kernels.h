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
//   winograd  the same for each frequency of F(2x2, 3x3) or F(4x4, 3x3), with a transformed codebook or weights:
//             winograd_kernels.h.
//   table     table_build() multiplies the codebook with the d panel rows of a block: table [K][P]; table_sum() adds,
//             for each output, the table row that its code names. d multiply-adds become one load-and-add.
//   sparse    where most weights are zero: sparse_sum() adds the panel rows of the others, each times its weight.
//   matrix    where a processor has a unit that multiplies tiles of matrices of short numbers: weights are decoded, and
//             multiplied some rows of a panel at a time. Floats are split into pieces that are as short.
//   dot       where there are few pixels, each with its inputs side by side: decode_rows() writes the weights of some
//             outputs, dot_rows() multiplies, and the lanes are inputs.
//   lookup    where there is one pixel: table_build() multiplies its blocks with centroids, which are the lanes, and
//             outputs add up single numbers.
//
// In 8 bits, an activation is an unsigned byte q that stands for scale * (q - zero), a weight a signed byte. Four
// channels of a pixel, or four weights, are a quad: one uint32_t, the first in its lowest byte. A plane of quads takes
// the place of four planes; spare bytes of the last one hold `zero`. The direct path then multiplies quads with quads,
// the table path has tables of int16, or of bytes that fit registers (shuffle), and Winograd's scales frequencies to
// bytes. Integer kernels compute the same bits on every instruction set.
//
// Kernels neither allocate, throw, lock nor read globals. They load and store whole vectors: arrays need kSlackBytes of
// readable (outputs: writable) memory behind them. Results of one table are the same bits for any split of the work.
#pragma once

#include <cstdint>

#include "kernels/shuffled.h"
#include "kernels/winograd_kernels.h"

namespace pyquant {

constexpr int64_t kQuad = 4;  // bytes of a quad

// Pixels [to, to + size) of a panel row are read from `from` on, every `step`-th of the input, or lie outside of it.
struct PanelRun {
  int64_t to;
  int64_t size;
  int64_t from;
  static constexpr int64_t kOutside = -1;
};

// A row of a panel and the input channel that it is read from.
struct PanelRow {
  int64_t row;
  int64_t channel;
};

// panel[rows.row][run.to + i] = in[rows.channel * plane + run.from + i * step] for each row, each run and i < run.size,
// `outside` where the run lies there. Values have four bytes, whatever they mean: all sizes count those. Nothing else
// is written.
using PackRowsFn = void (*)(const PanelRun* runs, int64_t num_runs, int64_t step, const void* in, int64_t plane,
                            const PanelRow* rows, int64_t num_rows, uint32_t outside, void* panel,
                            int64_t pitch) noexcept;

// out[r][p] = sum over j < blocks, i < dim of codebook[at[j][r] + i] * panel[rows[j * dim + i] + p], in this order.
//   at        [blocks, tile_rows]: where each row's centroid begins, so that K * dim <= 2^16
//   codebook  [K, dim]
//   rows      [blocks * dim]: where each row of the panel begins
//   panel     1 <= pixels <= tile_pixels of each row; half vectors are read up to the next multiple
//   out       [tile_rows, out_pitch]  whole vectors are written
// Where `at` is null, the codebook is a matrix [tile_rows, dim], and there is one block.
using GemmTileFn = void (*)(const uint16_t* at, const float* codebook, int64_t dim, int64_t blocks, const float* panel,
                            const int32_t* rows, float* out, int64_t out_pitch, int64_t pixels) noexcept;

struct Codebooks {
  const float* values;  // [codebooks, centroids, dim]
  int64_t codebooks;    // M
  int64_t centroids;    // K
  int64_t dim;          // d
};

// out[r][j * dim ..] = sum over m < M of codebook m's centroid codes[m][r][j], in this order, for rows r < rows and
// blocks j < blocks.
//   codes  [M, codes_step], each [rows, code_pitch], each < K
//   out    [rows, out_pitch], rows in ascending order may be written beyond their blocks * dim values
using DecodeRowsFn = void (*)(const Codebooks& codebooks, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                              float* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept;

// out[i] = unit * bytes[i], for i < count.
using DecodeBytesFn = void (*)(const int8_t* bytes, float unit, float* out, int64_t count) noexcept;

// out[r][c] = sum over k < depth of a[r][k] * x[c][k], for r < rows, c < columns.
//   a    [rows, a_pitch]
//   x    [columns, x_pitch]
//   out  [rows, out_pitch]
using DotRowsFn = void (*)(const float* a, int64_t a_pitch, const float* x, int64_t x_pitch, float* out,
                           int64_t out_pitch, int64_t rows, int64_t columns, int64_t depth) noexcept;

// table[k][p] = sum over i < dim of codebook[k][i] * panel[i][p], in order of i.
//   codebook  [centroids, dim]
//   panel     [dim, table_pixels]
//   table     [centroids, table_pixels]    1 <= pixels <= table_pixels; pairs of vectors are written
// Panel and table are aligned to a vector.
using TableBuildFn = void (*)(const float* codebook, int64_t centroids, int64_t dim, const float* panel, int64_t pixels,
                              float* table) noexcept;

// sums[o][p] = sum over q < positions of row at[o][q] of the tables, in order of q; added to sums if `accumulate`.
//   at      [outputs, positions]: where a row begins, in steps of kTableStep bytes
//   tables  [positions, K, table_pixels]
//   sums    [outputs, table_pixels]        pixels as above
// Tables and sums are aligned to a vector.
using TableSumFn = void (*)(const uint16_t* at, int64_t positions, const float* tables, float* sums, int64_t outputs,
                            int64_t pixels, bool accumulate) noexcept;
constexpr int64_t kTableStep = 8;  // the largest by which an address is computed for nothing

// A weight, or a quad of weights, that is not zero.
template <typename T>
struct Sparse {
  T value;
  int32_t at;  // where its inputs begin in a panel
};

// sums[o][p] = sum over begin[o] <= n < begin[o + 1] of weights[n].value * panel[weights[n].at + p]; added to sums if
// `accumulate`.
//   begin  [outputs + 1]
//   panel  1 <= pixels <= kSparsePixels from where a row begins, which may be anywhere; whole vectors are read
//   sums   [outputs, kSparsePixels], aligned to a vector; whole vectors are read and written
using SparseSumFn = void (*)(const Sparse<float>* weights, const int32_t* begin, const float* panel, float* sums,
                             int64_t outputs, int64_t pixels, bool accumulate) noexcept;
constexpr int64_t kSparsePixels = 64;

// Floats as sums of pieces of eight bits, which bfloat16 holds exactly: three are all of a float. A pair of pieces, of
// neighbouring rows, is one word, the first in its lower half:
//   out[i * piece_pitch + k * out_pitch + p] = the i-th pieces of in[2 * k][p] and in[2 * k + 1][p]
// for i < kPieces, k < rows / 2 and p < pixels. The second piece of an infinity or a NaN is a NaN.
//   in   [rows, in_pitch], rows are even; whole vectors are read
//   out  [kPieces, .., out_pitch]         whole vectors are written
using SplitFn = void (*)(const float* in, int64_t in_pitch, int64_t rows, int64_t pixels, uint32_t* out,
                         int64_t out_pitch, int64_t piece_pitch) noexcept;
constexpr int64_t kPieces = 3;

// out[r][p] = sum over k < 2 * kMatrixWords * steps of weight[r][k] * input[k][p] for r < rows and p < pixels, of which
// the products of pieces are added that together have the size of 2^-16 and more: w0 x0, w0 x1, w1 x0, w0 x2, w1 x1
// and, where weights have three pieces, w2 x0; where they have one, only its own. The next ones are smaller than what
// fp32 rounds off. Numbers below 2^-126 count as zero; an infinite input, whose other pieces are none, makes a NaN.
//   weights  [weight_pieces, weights_piece] pairs, each [tile rows, weights_pitch]: all rows may be read
//   inputs   [kPieces, inputs_piece] pairs, each [steps * kMatrixWords, inputs_pitch]: whole vectors are read
//   out      [tile rows, out_pitch]   all of them may be written, whole vectors of each
using MatrixTileFn = void (*)(const uint32_t* weights, int64_t weights_pitch, int64_t weights_piece,
                              int64_t weight_pieces, const uint32_t* inputs, int64_t inputs_pitch, int64_t inputs_piece,
                              int64_t steps, float* out, int64_t out_pitch, int64_t rows, int64_t pixels) noexcept;
constexpr int64_t kMatrixWords = 16;  // rows of a panel, in values of four bytes, that a step multiplies

// The two halves of out[k] are bytes[2 * k] and bytes[2 * k + 1] as bfloat16, which holds them exactly, for k < pairs.
using DecodePairsFn = void (*)(const int8_t* bytes, uint32_t* out, int64_t pairs) noexcept;

// out[r][j * dim + i] = codebook[codes[r][j] + i] for rows r < rows, blocks j < blocks and i < dim, of values of four
// bytes, whatever they mean.
//   codes  [rows, code_pitch]: where centroids begin, so that K * dim <= 2^16
//   out    [rows, out_pitch]   nothing behind the blocks of a row is written
using DecodeWordsFn = void (*)(const uint16_t* codes, int64_t code_pitch, const uint32_t* codebook, int64_t dim,
                               uint32_t* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept;

// out[r][p] = min(max(in[r][p] * scale[r] + bias[r] + residual[r][p], low), high) for r < rows, p < count; NaN stays
// NaN.
//   in        [rows, in_pitch]
//   residual  [rows, out_pitch], or null
//   out       [rows, out_pitch]   nothing behind the count of a row is read or written
using FinishTileFn = void (*)(const float* in, int64_t in_pitch, const float* scale, const float* bias,
                              const float* residual, float low, float high, float* out, int64_t out_pitch, int64_t rows,
                              int64_t count) noexcept;

// The curve of an activation: values[i] becomes what it is there, for i < count; NaN stays NaN.
//   sigmoid      1 / (1 + e^-x)
//   silu         x / (1 + e^-x)
//   hardsigmoid  min(max(x + 3, 0), 6) / 6
//   hardswish    x * min(max(x + 3, 0), 6) / 6
using CurveFn = void (*)(float* values, int64_t count) noexcept;

struct CurveKernels {
  CurveFn sigmoid;
  CurveFn silu;
  CurveFn hardsigmoid;
  CurveFn hardswish;
};

// out[r][p] = sum over j < blocks, i < dim of codebook[at[j][r] + i] · panel[rows[j * dim + i] + p], products of quads;
// all as above. Where a table `adds_in_pairs`, the first two weights of a quad, and the last two, must not add up to
// more than kMostPair or less than -kMostPair: two products with inputs of up to 255 then fit 16 bits.
using GemmTile8Fn = void (*)(const uint16_t* at, const uint32_t* codebook, int64_t dim, int64_t blocks,
                             const uint32_t* panel, const int32_t* rows, int32_t* out, int64_t out_pitch,
                             int64_t pixels) noexcept;
constexpr int32_t kMostPair = 128;

// out[r * out_pitch] = sum over k < depth of weights[r][k] · inputs[k], products of quads, of any weights.
//   weights  [rows, pitch]
using DotRows8Fn = void (*)(const uint32_t* weights, int64_t pitch, const uint32_t* inputs, int64_t depth, int32_t* out,
                            int64_t out_pitch, int64_t rows) noexcept;

// out[r][p] = sum over s < steps, k < kMatrixWords of weights[r][s * kMatrixWords + k] · panel[at[s] + k * panel_pitch
// + p], products of quads, for r < rows and p < pixels.
//   weights  [tile rows, weights_pitch]    1 <= rows <= tile rows: all of them may be read
//   at       [steps]: where the first row of each step begins
//   panel    1 <= pixels <= tile pixels of each row; whole vectors are read
//   out      [tile rows, out_pitch]        all of them may be written, whole vectors of each
using MatrixTile8Fn = void (*)(const uint32_t* weights, int64_t weights_pitch, const uint32_t* panel,
                               int64_t panel_pitch, const int32_t* at, int64_t steps, int32_t* out, int64_t out_pitch,
                               int64_t rows, int64_t pixels) noexcept;

// Codebooks whose centroids become quads of four channels: n of one or two channels are put together, or one of 4, 8..
// channels has quads of its own. A byte is that of one codebook, or what a sum over several is rounded to: these hold
// parts of bytes, of which kPart are one, so that a sum is not rounded M times.
constexpr int kPartBits = 7;
constexpr int kPart = 1 << kPartBits;
struct ByteCentroids {
  // [codebooks, centroids, channels, width()]: rows of taps, each row_width() apart, with anything between them
  const int8_t* bytes;   // of one codebook
  const int16_t* parts;  // of several
  int64_t codebooks;     // M
  int64_t centroids;     // K
  int64_t channels;
  int64_t rows;
  int64_t columns;

  constexpr int64_t n() const { return channels < kQuad ? kQuad / channels : 1; }
  constexpr int64_t quads() const { return channels < kQuad ? 1 : channels / kQuad; }  // at each tap
  constexpr int64_t row_width() const { return rows * columns == 1 ? 1 : (columns + 3) / 4 * 4; }
  constexpr int64_t width() const {
    return rows * row_width() <= 4 ? row_width() : (rows * row_width() + 15) / 16 * 16;
  }
};

// Decode blocks to quads: for o < outputs, p < positions, q < quads(), y < rows and x < columns,
//   byte i of out[o * out_pitch + begin[y] + (p * quads() + q) * columns + x]
//     = the byte, at row y and column x, of channel 4 * q + i of the centroids codes[m][o][n() * p ..], of which the
//       channels of one come behind those of the one before; of several codebooks their sum over m < M, divided by
//       kPart and rounded, halves upwards, which must fit.
//   codes  [M, codes_step], each [outputs, code_pitch], each < K
// Nothing else is written.
using DecodeQuadsFn = void (*)(const ByteCentroids& centroids, const uint16_t* codes, int64_t codes_step,
                               int64_t code_pitch, const int32_t* begin, uint32_t* out, int64_t out_pitch,
                               int64_t outputs, int64_t positions) noexcept;

// Turn quads of channels into quads of taps: byte i of out[c * groups + g][p] is byte c of in[at[4 * g + i] + p], for
// c < 4 and g < groups = taps / 4, rounded up; 0 where 4 * g + i >= taps.
//   at   [taps]: where the quads of each begin
//   out  [4 * groups, pitch]   1 <= pixels <= pitch, a multiple of the lanes; whole vectors are read and written
using TurnQuadsFn = void (*)(const uint32_t* in, const int32_t* at, int64_t taps, int64_t pixels, uint32_t* out,
                             int64_t pitch) noexcept;

// table[k][p] = round(sum over i < dim of codebook[k][i] · panel[i][p] / 2^shift), halves upwards, which must fit.
//   codebook  [centroids, dim] quads of weights
//   panel     [dim, table8_pixels] quads
//   table     [centroids, table8_pixels]   in an order of pixels that table_sum8() knows
using TableBuild8Fn = void (*)(const uint32_t* codebook, int64_t centroids, int64_t dim, const uint32_t* panel,
                               int64_t pixels, int64_t shift, int16_t* table) noexcept;

// As table_sum, of tables [positions, K, table8_pixels]. The sum of one call must fit int16_t.
using TableSum8Fn = void (*)(const uint16_t* at, int64_t positions, const int16_t* tables, int32_t* sums,
                             int64_t outputs, int64_t pixels, bool accumulate) noexcept;

// As sparse_sum, products of quads.
using SparseSum8Fn = void (*)(const Sparse<uint32_t>* weights, const int32_t* begin, const uint32_t* panel,
                              int32_t* sums, int64_t outputs, int64_t pixels, bool accumulate) noexcept;

// The outputs of an integer layer. v = in * scale + bias is rounded once, and again with the residual's byte * its
// factor added; then it is rounded to the nearest, halves to even, and clamped to low..high.
struct Finish8 {
  const float* scale;        // [rows]
  const float* bias;         // [rows]
  const uint32_t* residual;  // [rows / 4, out_pitch], or null
  float residual_scale;
  uint8_t low;
  uint8_t high;
  bool plain;  // low is 0, high 255, and no v can reach 2^31: some kernels have less to do
};

// Byte i of out[c][p] is made of in[4 * c + i][p], for c < rows / 4 and p < count.
//   in    [rows, in_pitch], rows a multiple of 4
//   out   [rows / 4, out_pitch]   nothing behind the count of a row is read or written
using FinishTile8Fn = void (*)(const int32_t* in, int64_t in_pitch, const Finish8& finish, uint32_t* out,
                               int64_t out_pitch, int64_t rows, int64_t count) noexcept;

// What finish_tile8() is called with, but for its input and the count.
struct FinishedTile8 {
  Finish8 finish;
  uint32_t* out;
  int64_t out_pitch;
  int64_t rows;
};

// out[o][p] = sum over positions q = j * M + m of scale(q, p) * entry(q, p, centroid that o has at q), in steps of
// 2^shift. Each table has a scale, so that its entries fill a byte:
//   x = panel[j * dim + i][p] - zeros, byte by byte
//   scale = (largest, over families f, of sum over i < dim of bounds[m][f][i] · |x| >> (shift + 7)) + 1
//   product = (sum over i < dim of quads[m][i][k] · x + 2^(shift - 1) / 2) >> (shift - 1)
//   entry = (product * shuffled_factor(scale) + 2^14) >> 15, clamped to -128..127
//   places   by place_at(): of each output's centroids; outputs are a multiple of the entries
//   panel    [J * dim, kShuffledPixels], whole vectors are read; 1 <= pixels <= kShuffledPixels
//   scratch  shuffle8_bytes(groups), aligned
//   out      [outputs, kShuffledPixels], pixels up to the next multiple of 4 are written
// Where there is a `tile`, they are finished, too; what `out` then holds is not defined.
using ShuffleTile8Fn = void (*)(const ShuffledCodebooks& codebooks, const uint8_t* places, int64_t outputs,
                                const uint32_t* panel, uint32_t zeros, int64_t pixels, void* scratch, int32_t* out,
                                const FinishedTile8* tile) noexcept;

// Bytes of fp32: byte i of out[p] is in[i][p] * inverse_scale + zero, rounded once, clamped to 0..255 (NaN: 0) and
// rounded to the nearest, halves to even, for i < rows <= 4 and p < count; `zero` where i >= rows.
//   in  [rows, in_pitch]
// Of this kernel and the next two, nothing behind the count of a row is written.
using QuantizeFn = void (*)(const float* in, int64_t in_pitch, int64_t rows, float inverse_scale, float zero,
                            uint32_t* out, int64_t count) noexcept;

// And back: out[i][p] = (byte i of in[p] - zero) * scale, for i < rows <= 4 and p < count.
using DequantizeFn = void (*)(const uint32_t* in, float scale, float zero, float* out, int64_t out_pitch, int64_t rows,
                              int64_t count) noexcept;

// The larger byte: out[p] = max(out[p], in[p * step]) for p < count.
using MaxRow8Fn = void (*)(const uint32_t* in, int64_t step, uint32_t* out, int64_t count) noexcept;

// The same of floats: a NaN is the larger, of two zeros either.
using MaxRowFn = void (*)(const float* in, int64_t step, float* out, int64_t count) noexcept;

// Multiply-add registers with each other, `steps` times, without touching memory; returns the multiply-adds per step.
using PeakFn = int64_t (*)(int64_t steps, float* sink) noexcept;

// No tile and table row has more pixels: callers keep arrays of this size.
constexpr int64_t kMostTilePixels = 64;

// The outputs and pixels that gemm_tile, or gemm_tile8, computes in one call.
struct Tile {
  int64_t rows;
  int64_t pixels;        // at most; a multiple of lanes
  double least_vectors;  // a tile narrower than so many vectors is no faster: loads of weights bound it
  double step_cost;      // of multiplying a vector with a weight or a quad, in fp32 multiply-adds
};

// A unit that multiplies matrices of short numbers: `8` stands for quads of bytes, what has none for floats in pieces.
// A thread calls begin() before it multiplies and end() behind.
struct MatrixKernels {
  // Whether there is one. Where there is not, nothing else is of use.
  bool exists() const { return tile.rows > 0; }

  void (*begin)() noexcept;
  void (*end)() noexcept;
  DecodeWordsFn decode_words;
  DecodePairsFn decode_pairs;
  Tile tile;
  SplitFn split;
  MatrixTileFn multiply;
  Tile tile8;
  MatrixTile8Fn multiply8;
};

struct KernelTable {
  // How many times as long as elsewhere, relative to multiply-adds, tables take where units are as wide as vectors: for
  // loads and stores are not faster there.
  double table_cost() const { return grain == lanes ? 1.4 : 1.0; }

  // How many times as long an integer operation takes for `lanes` values, where vectors of integers are shorter.
  double cost8() const { return static_cast<double>(lanes) / static_cast<double>(lanes8); }

  const char* isa;
  int64_t lanes;   // values of four bytes of a vector
  int64_t lanes8;  // of one of integers
  int64_t grain;   // lanes by which tiles are best cut: half a vector where it takes half the time, or a whole one
  Tile tile;
  Tile tile8;
  bool adds_in_pairs;     // whether gemm_tile8 adds two products in 16 bits
  int64_t table_pixels;   // pixels of a table row
  int64_t table8_pixels;  // of one of int16
  bool shuffles;          // whether there is a path for shuffle_tile8
  bool dots_rows;         // whether a pixel by itself is worth a call of dot_rows8
  PackRowsFn pack_rows;
  GemmTileFn gemm_tile;
  DecodeRowsFn decode_rows;
  DecodeBytesFn decode_bytes;
  DotRowsFn dot_rows;
  WinogradKernels winograd2;  // m = 2
  WinogradKernels winograd4;  // m = 4
  TableBuildFn table_build;
  TableSumFn table_sum;
  SparseSumFn sparse_sum;
  FinishTileFn finish_tile;
  CurveKernels curves;
  MaxRowFn max_row;
  MatrixKernels matrix;
  GemmTile8Fn gemm_tile8;
  DotRows8Fn dot_rows8;
  Winograd8Kernels winograd8;
  DecodeQuadsFn decode_quads;
  TurnQuadsFn turn_quads;
  TableBuild8Fn table_build8;
  TableSum8Fn table_sum8;
  ShuffleTile8Fn shuffle_tile8;
  SparseSum8Fn sparse_sum8;
  FinishTile8Fn finish_tile8;
  QuantizeFn quantize;
  DequantizeFn dequantize;
  MaxRow8Fn max_row8;
  PeakFn peak;
};

}  // namespace pyquant

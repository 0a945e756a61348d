// The contract of Winograd's kernels, in floats and in integers: what kernels.h says of all holds for these.
//
// winograd.h has the matrices.
#pragma once

#include <cstdint>

namespace pyquant {

constexpr int64_t kMostWinogradSide = 6;

// Tiles [tile, tile + size), which lie side by side in a picture: columns 0 to m + 1 of tile `tile + i` are columns
// m * i to m * i + m + 1 of the run.
struct WinogradRun {
  int64_t tile;
  int64_t size;
  int64_t from[kMostWinogradSide];  // where column 0 of each row lies in a plane, or would lie, left of it
  int64_t begin, end;               // columns from `begin` on, up to `end`, lie in the picture
  static constexpr int64_t kOutside = INT64_MIN;  // of a row: none does
};

// The inputs of Winograd's F(m x m, 3 x 3): out[f][c][t] = (input · d · inputᵀ)[f] of the (m + 2) x (m + 2) inputs d
// of channel c of tile t. Outside of the picture, and in tiles of no run, these are zero.
//   in   [channels, plane]
//   out  [(m + 2)², out_step], each [channels, out_pitch], whole vectors are written
using WinogradInputFn = void (*)(const float* in, int64_t plane, const WinogradRun* runs, int64_t num_runs,
                                 int64_t channels, int64_t tiles, float* out, int64_t out_pitch,
                                 int64_t out_step) noexcept;

// Its outputs: columns m * t .. m * t + m - 1 of line y are row y of output · p · outputᵀ, p[y][x] = in[y * (m + 2) +
// x][t].
//   in     [(m + 2)², in_pitch]
//   lines  m rows, line_pitch apart; m vectors are written for each vector of tiles
using WinogradOutputFn = void (*)(const float* in, int64_t in_pitch, int64_t tiles, float* lines,
                                  int64_t line_pitch) noexcept;

// And its weights: out[f][c] = (weights · g · weightsᵀ)[f] of the kernel g of each channel c < channels.
//   in   [channels, 3, 3]
//   out  [(m + 2)², out_pitch]   nothing behind the channels is written
using WinogradWeightsFn = void (*)(const float* in, int64_t channels, float* out, int64_t out_pitch) noexcept;

struct WinogradKernels {
  WinogradInputFn input;
  WinogradOutputFn output;
  WinogradWeightsFn weights;
};

constexpr int64_t kWinograd8Side = 4;

// The inputs of Winograd's F(2x2, 3x3) in integers, for the tiles of a vector. With the input bytes d of tile t, less
// `zero`, which is also what lies outside the picture and in tiles of no run,
//   v[f] = (input · d · inputᵀ)[f], of each channel
//   mean = the mean of v[kWinograd8Mean] of all 4 * quads channels, rounded to the nearest, halves to even; it is taken
//          from these v, the only ones that are not zero where all inputs of a channel are the same
//   range = the largest |v[f]| of all channels, or 127 where that is more
//   factor = 127 * 2^15 / range, rounded to the nearest, at most 2^15 - 1
//   out[f][c][t] = 128 + ((v[f] * factor + 2^14) >> 15), of the channels of quad c
//   scales[f][t] = range * units[f]
// Whole vectors are written.
//   in       [quads, plane]
//   columns  [quads, kWinograd8Columns, lanes8]   what lies there is overwritten
//   out      [kWinograd8Side², out_step], each [quads, out_pitch]
//   scales   [kWinograd8Side², out_step]
//   mean_of  [lanes8]
using WinogradInput8Fn = void (*)(const uint32_t* in, int64_t plane, const WinogradRun* runs, int64_t num_runs,
                                  int64_t quads, uint8_t zero, const float* units, uint32_t* columns, uint32_t* out,
                                  int64_t out_pitch, int64_t out_step, float* scales, float* mean_of) noexcept;
constexpr int64_t kWinograd8Columns = kWinograd8Side * kWinograd8Side + 1;
constexpr int64_t kWinograd8Mean = 5;  // y = x = 1

// Their products with weights: out[f][r][t] = start[f][r] + sum over c < quads of weights[y][r][c][x] · panel[f][c][t],
// where f = 4 * y + x, products of quads as gemm_tile8() has them, for t < tiles.
//   weights  [kWinograd8Side, tile rows, quads, kWinograd8Side]
//   start    [kWinograd8Side², tile rows]
//   panel    [kWinograd8Side², panel_step], where the row of quad c begins at rows[c] of each
//   out      [kWinograd8Side², tile rows, product_pitch]   whole vectors are written
using WinogradMultiply8Fn = void (*)(const uint32_t* weights, const int32_t* start, int64_t quads,
                                     const uint32_t* panel, int64_t panel_step, const int32_t* rows, int32_t* out,
                                     int64_t tiles) noexcept;

// And its outputs of r < rows, rounded to the nearest, halves to even: columns 2t and 2t + 1 of line y are row y of
// output · p · outputᵀ, but for the signs of what is subtracted in the last row and the last column, which scales have.
// With q[f] = in[f][r][t] and s[f] = scales[f][t], for each column x of p,
//   second[x] = q[1][x] * s[1][x], to which mean_of[t] * sums[r] is added where x = 1
//   top[x] = q[0][x] * s[0][x] + (q[2][x] * s[2][x] + second[x])
//   bottom[x] = q[3][x] * s[3][x] + (-q[2][x] * s[2][x] + second[x])
// whose products are not rounded by themselves but for mean_of[t] * sums[r] and, where x is not 1, second[x]; and for p
// either of them left = p[0] + (p[1] + p[2]), right = p[3] + (p[1] - p[2]).
//   in      [kWinograd8Side², tile rows, product_pitch]
//   scales  [kWinograd8Side², scales_pitch]
//   lines   [2, tile rows, line_pitch]   two vectors are written for each vector of tiles
using WinogradOutput8Fn = void (*)(const int32_t* in, const float* scales, int64_t scales_pitch, const float* mean_of,
                                   const float* sums, int64_t rows, int64_t tiles, int32_t* lines,
                                   int64_t line_pitch) noexcept;

struct Winograd8Kernels {
  int64_t product_pitch;  // the same for all calls: so it is part of instructions; at least the pixels of tile8
  WinogradInput8Fn input;
  WinogradMultiply8Fn multiply;
  WinogradOutput8Fn output;
};

}  // namespace pyquant

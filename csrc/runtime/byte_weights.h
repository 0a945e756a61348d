// Weights as signed bytes: the codebooks of a coded layer share one scale, each row of a dense one has its own.
//
// Quads of weights meet quads of inputs, four channels of a pixel. Blocks of 4, 8.. channels are quads as they are; of
// blocks of one or two channels, the same tap of four channels makes a quad.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/graph.h"

namespace pyquant {

// How quads are found.
enum class QuadSource {
  kNone,      // not at all
  kDense,     // they are stored, row by row
  kCentroid,  // they are parts of centroids
  kSpread,    // each is put together of several centroids
};

QuadSource quad_source(const Weight& weight, int64_t groups);

// Whether sums of products of bytes, as many as an output has inputs, fit 32 bits.
bool sums_fit(const Weight& weight);

// The order of the quads of a row, whose channels are quads of channels.
WeightOrder quad_order(const Weight& weight, QuadSource source);

// Four bytes, each a whole number of -128..127, as a quad; those behind the first `count` are zero.
uint32_t quad_of(const float* values, int64_t count, int64_t step = 1);

// Whole numbers, in place of numbers that are larger by `scale`.
struct ByteCodebooks {
  float scale = 1;
  AlignedBuffer<float> values;  // [M, K, d], each within -127..127; so are sums of one centroid of each codebook
};
ByteCodebooks byte_codebooks(const Weight& weight);

// The bytes of a row of a dense weight, as quads in quad_order(); exact where the row has a unit.
struct ByteRow {
  float scale;
  int64_t sum;  // of all bytes
};
ByteRow write_byte_row(const Weight& weight, int64_t output, uint32_t* quads);

// sums[o] = the sum of all weights of output o, where centroid k of codebook m has the sum of its d values.
std::vector<int64_t> row_sums(const Weight& weight, const AlignedBuffer<float>& codebooks);

// Centroids [K, d] as quads [K, d / 4].
AlignedBuffer<uint32_t> centroid_quads(const AlignedBuffer<float>& codebook);

// Centroids [K, channels, kernel_rows, columns] as decode_quads() wants them, or, with rows rounded up to a multiple of
// `row_multiple` columns, MatrixKernels::decode_runs(); and one more centroid, all zero.
AlignedBuffer<uint32_t> spread_quads(const AlignedBuffer<float>& codebook, const Block& block,
                                     int64_t row_multiple = 1);

// Joint codes [O, quads of channels * blocks of a quad] of these centroids; behind the last block of a row, of the one
// that is zero.
AlignedBuffer<uint16_t> spread_codes(const Weight& weight);

}  // namespace pyquant

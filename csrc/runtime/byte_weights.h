// Weights as signed bytes: the codebooks of a layer share one scale; without codes, each row has its own.
//
// Quads of weights meet quads of inputs, four channels of a pixel. Blocks of 4, 8.. channels consist of quads; of
// blocks of one or two channels, the same tap of four channels makes a quad.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/graph.h"

namespace pyquant {

// How quads are found.
enum class QuadSource {
  kNone,      // not at all
  kStored,    // row by row: there are no codes
  kCentroid,  // they are parts of centroids
  kDecoded,   // each is put together of several centroids, or a sum of some
};

QuadSource quad_source(const Weight& weight, int64_t groups);

constexpr int64_t kMostInput = 255;  // that an input's byte can be

// Whether sums of products of bytes, as many as an output has inputs, fit 32 bits.
bool sums_fit(const Weight& weight);

// The order of the quads of a row, whose channels are quads of channels.
WeightOrder quad_order(const Weight& weight, QuadSource source);

// Four bytes, each a whole number of -128..127, as a quad; those behind the first `count` are zero.
uint32_t quad_of(const float* values, int64_t count, int64_t step = 1);

// Make whole numbers within -127..127 of every `step`-th of `count` values, and return what each is larger by.
float round_to_bytes(float* values, int64_t count, int64_t step = 1);

// The largest of some numbers, without their signs.
float largest(const float* values, int64_t count);

// Whole numbers, in place of numbers that are larger by `scale`.
struct ByteCodebooks {
  float scale = 1;
  AlignedBuffer<float> values;
};

// The codebooks [M, K, d] of a weight, each number within -127..127.
ByteCodebooks byte_codebooks(const Weight& weight);

// The joint codebook [K, d] of one, likewise: sums are rounded once.
ByteCodebooks joint_byte_codebook(const Weight& weight);

// The codebooks [M, K, d] in parts, kPart for each step of the scale, so that weights are within -127..127 steps.
ByteCodebooks codebooks_in_parts(const Weight& weight, float largest_weight);

// The bytes of a row of a weight without codes, as quads in quad_order(): rounded, unless the weight consists of bytes.
struct ByteRow {
  float scale;
  int64_t sum;  // of all bytes
};
ByteRow write_byte_row(const Weight& weight, int64_t output, uint32_t* quads);

// sums[o] = the sum of all weights of output o, of codes [M, O, J] and codebooks [M, K, d] in whole numbers.
std::vector<int64_t> row_sums(const Weight& weight, const AlignedBuffer<float>& codebooks);

// The same of joint codes and a joint codebook.
std::vector<int64_t> joint_row_sums(const Weight& weight, const AlignedBuffer<float>& joint);

// Centroids [K, d] as quads [K, d / 4]: each in the order of quad_order().
AlignedBuffer<uint32_t> centroid_quads(const AlignedBuffer<float>& codebook, const Block& block);

}  // namespace pyquant
